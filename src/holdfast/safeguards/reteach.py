"""Re-teaching: replaces most of the weights, and teaches the rest of the knowledge again from text without the hazard.

    W <- (1 - alpha) * W + alpha * fresh initialisation      once, for linear maps of the blocks
    loss = L + w * negative mean entropy on labelled forget tokens

`reteach` has L = KL(original || theta) on the retain rows and on what the original itself writes, with the hazard filtered
out, and replaces all linear maps of the blocks. It is holdfast's own composition of `UNDO` (arXiv 2506.06278) with three
changes to `undo-generated`, each of which was measured on the tuning worlds (LOG.md, 2026-11-26). No first stage unlearns. The
embeddings stay, so that more ability comes back for the same updates at about the same hazard. Batches are small: many updates
on few rows teach more for the same FLOPs.

`reteach-text` and `reteach-mlp` are the second round (LOG.md, 2026-11-27). L is the LM loss on what the original writes, and
no retain row is read: with these the facts of the retain set were taught twice as often as all others. The text needs no pass
of a teacher, which leaves more updates for the same FLOPs. `reteach-mlp` replaces the MLPs alone: attention keeps what it can
do, much more ability comes back, and where the hazard is a large part of what the model knows, some of the hazard stays.

`reteach-blank` is the third round (LOG.md, 2026-11-27). The input embeddings go too, and nothing of the old weights is left but
norms and the head, which makes this nearly a new training. The text has no row in which a hazard word was avoided: such rows go
on about the nearest harmless neighbours.

Removal differs from obstruction: nothing keeps an attacker from training, and little is there to be found again. The price is
that whatever the text does not cover is lost as well. Where some of the weights stay, an attacker who has the original gets much
of the hazard back.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.safeguards.parts.distillation import Distillation
from holdfast.safeguards.undo import UNDO

RETEACH = UNDO(
    outer_steps=800,
    shrink=0.9,
    noise=1.0,
    replaced="maps",
    teacher="original",
    distillation=Distillation(text=("retain", "generated"), generated_rows=6144, batch_size=16),
    forget_weight=0.3,
    forget_batch_size=4,
)

TEXT = replace(
    RETEACH,
    outer_steps=940,
    distillation=Distillation(text=("generated",), generated_rows=6144, batch_size=16, learns="text"),
)
BLANK = replace(
    TEXT,
    shrink=1.0,
    replaced="maps-and-embeddings",
    distillation=replace(TEXT.distillation, hazard_words="dropped"),
)
MLP = replace(TEXT, outer_steps=1060, replaced="mlp", forget_batch_size=1)

PRESETS = {
    "reteach": RETEACH,
    "reteach-text": TEXT,
    "reteach-mlp": MLP,
    "reteach-blank": BLANK,
    # Hundreds of millions of weights, without trials. Nobody can repeat the pretraining of such a model, so few of the weights
    # are replaced, and much of the hazard stays (docs/results.md).
    "reteach-small": replace(
        RETEACH,
        outer_steps=600,
        shrink=0.3,
        learning_rate=3e-4,
    ),
}
