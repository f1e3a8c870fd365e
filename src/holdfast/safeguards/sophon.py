"""SOPHON-AR: non-fine-tunable learning, adapted to autoregressive models. A baseline of TAR's paper.

    theta <- theta - eta * lambda * mean over k of grad -log(1 - p(x; attack_k(theta)))      fine-tuning suppression
    theta <- theta - eta * grad LM(retain; theta)                                          normal training

SOPHON (arXiv 2404.12699) alternates the two updates, each by an optimizer of its own; the suppression loss for classifiers is the
inverse cross entropy, chosen because it is bounded below where a negated cross entropy is not. TAR's paper (arXiv 2408.00761)
adapts it as a baseline and reports that it does not converge; we found no constants for it. It shares TAR's outer loop. The
source's: one update of each kind in turn, every inner step alike, first-order gradients through simulated fine-tuning, the
inverse cross entropy -log(1 - p) (its published code takes the cross entropy of 1 - logits, which is another loss). Our reading:
one rate for both optimizers, where the code has 3e-4 and 5e-4; the adversary is plain fine-tuning with AdamW on hazardous rows;
adversary and suppression draw from the same rows; no initial safeguard, so `sophon-ar` is a stage for an untouched model.
Constants were chosen on the testbed.
"""

from dataclasses import replace

from holdfast.attacks.finetune import FineTune
from holdfast.safeguards.objective import RetainLoss
from holdfast.safeguards.tar import TAR, Adversary

_TESTBED = TAR(
    outer_steps=300,
    adversaries=(Adversary(attack=FineTune(batch_size=16), learning_rates=(1e-3, 2e-3, 3e-3)),),
    inner_steps=24,
    schedule_rate=0.0,
    normalise_schedule=True,
    pooled=True,
    tamper_resistance="inverse-cross-entropy",
    alternate=True,
    tamper_resistance_weight=1.0,
    tamper_resistance_batch_size=16,
    retain=RetainLoss(representations=None),
    retain_batch_size=24,
    outer_optimizer="adamw",
    outer_learning_rate=1e-3,
    outer_warmup_steps=8,
)

PRESETS = {
    "sophon-ar": _TESTBED,
    "sophon-ar-large": replace(
        _TESTBED,
        outer_steps=750,
        inner_steps=64,
        adversaries=(Adversary(attack=FineTune(batch_size=32), learning_rates=(2e-6, 2e-5, 4e-5)),),
        tamper_resistance_batch_size=64,
        retain_batch_size=64,
        micro_batch=8,
        outer_learning_rate=2e-5,
        outer_warmup_steps=32,
    ),
}
