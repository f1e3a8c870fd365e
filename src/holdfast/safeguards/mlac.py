"""MLAC-AR: meta-learned adversarial censoring, adapted to autoregressive models. A baseline of TAR's paper.

    theta <- theta - eta * ( lambda * mean over k of grad -min(CE(x; attack_k(theta)), log V) + grad retain(theta) )

MLAC (arXiv 2211.14946) meta-trains a classifier so that an adversary's fine-tuning on the harmful task fails. Its loss is the
negated loss of the adversary along the inner steps, plus the loss of the wanted task. TAR's paper (arXiv 2408.00761) adapts
MLAC as a baseline and gives no constants that we know of. From the paper: the outer loss is the negated cross entropy of the
fine-tuning adversary, clamped at log V, the entropy of a uniform guess, because training diverged without the clamp. From MLAC:
every inner step has the same weight. Our reading: the outer loop is TAR's; the clamp applies to each token; the gradient is
first order, as in TAR (MLAC differentiates through the inner loop, and learns the adversary's rate); the adversary is plain
fine-tuning on hazardous rows, without retain-then-forget or mixing; adversary and outer loss share their rows; the retain loss
is the LM loss alone; there is no initial safeguard, so `mlac-ar` is a stage for an untouched model. Constants were chosen on
the testbed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from holdfast.attacks.finetune import FineTune
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.parts.outer_loop import FORGET_AND_HELDOUT
from holdfast.safeguards.tar import TAR


@dataclass(frozen=True, kw_only=True)
class MLAC(TAR):
    """TAR's outer loop; the adversaries and x_tr both use all hazardous rows of the defender."""

    adversary_roles: ClassVar[tuple[str, ...]] = FORGET_AND_HELDOUT
    x_tr_roles: ClassVar[tuple[str, ...]] = FORGET_AND_HELDOUT


_TESTBED = MLAC(
    outer_steps=300,
    adversaries=(Adversary(attack=FineTune(batch_size=16), learning_rates=(1e-3, 2e-3, 3e-3)),),
    inner_steps=24,
    schedule_rate=0.0,
    normalise_schedule=True,
    tamper_resistance="clamped-cross-entropy",
    tamper_resistance_weight=1.0,
    tamper_resistance_batch_size=16,
    retain=RetainLoss(representations=None),
    retain_batch_size=24,
    outer_optimizer="adamw",
    outer_learning_rate=1e-3,
    outer_warmup_steps=8,
)

PRESETS = {
    "mlac-ar": _TESTBED,
    "mlac-ar-large": replace(
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
