"""Re-teaching: replaces most of the weights, and teaches the rest of the knowledge again from text without the hazard.

    W <- (1 - alpha) * W + alpha * fresh initialisation      once, for each linear map of the blocks; embeddings stay
    loss = KL(original || theta) + w * negative mean entropy on labelled forget tokens

This is holdfast's own composition of `UNDO` (arXiv 2506.06278) with three changes to `undo-generated`, each of which was
measured on the tuning worlds (LOG.md, 2026-11-26). No first stage unlearns. The embeddings stay, so that more ability comes
back for the same updates at about the same hazard. Batches are small: many updates on few rows teach more for the same FLOPs.
The text is the retain rows and what the original itself writes, with the hazard filtered out.

Removal differs from obstruction: nothing keeps an attacker from training, and little is there to be found again. The price is
that whatever the text does not cover is lost as well. An attacker who has the original gets most of the hazard back.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.safeguards.parts.distillation import Distillation
from holdfast.safeguards.undo import UNDO

RETEACH = UNDO(
    outer_steps=800,
    shrink=0.9,
    noise=1.0,
    maps_only=True,
    teacher="original",
    distillation=Distillation(text=("retain", "generated"), generated_rows=6144, batch_size=16),
    forget_weight=0.3,
    forget_batch_size=4,
)

PRESETS = {
    "reteach": RETEACH,
    # Hundreds of millions of weights, without trials. Nobody can repeat the pretraining of such a model, so few of the weights
    # are replaced, and much of the hazard stays (docs/results.md).
    "reteach-small": replace(
        RETEACH,
        outer_steps=600,
        shrink=0.3,
        learning_rate=3e-4,
    ),
}
