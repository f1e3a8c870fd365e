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

from holdfast.safeguards.mlac import PRESETS as MLAC

# Its outer loop is MLAC-AR's but for the loss and the two updates.
PRESETS = {
    f"sophon-ar{size}": replace(MLAC[f"mlac-ar{size}"], tamper_resistance="inverse-cross-entropy", alternate=True)
    for size in ("", "-large")
}
