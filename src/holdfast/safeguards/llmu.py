"""LLMU, large language model unlearning: ascends on hazardous text and trains the model to continue that text with other text.

    loss = retain(theta) + w * ( -LM(forget rows) + m * mismatch(forget rows) )

`mismatch` is the cross entropy at the positions of hazardous text against the labels of unrelated retain text: the model learns
to continue hazardous text with unrelated text. The source is arXiv 2310.10683, as TAR's paper uses the method (arXiv
2408.00761: the loss on retain text in place of the KL to the original; m = 1, w = 1; steps and rate as in `max_entropy`).
Constants of `llmu` were chosen on the testbed. Deviations: the mismatch is averaged over the forget rows' labels, where the
code averages within each row first; the retain loss has TAR's representation term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.ranges import check_settings
from holdfast.safeguards.parts.forgetting import Forgetting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class LLMU(Forgetting):
    """Combines gradient ascent on hazardous text with training on unrelated continuations of that text."""

    forget_weight: float = 0.3
    """weight w of the forget loss relative to the retain loss"""
    mismatch_weight: float = 1.0
    """weight m of the mismatch relative to the ascent"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, not_negative=("mismatch_weight",))

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        import torch.nn.functional as F

        from holdfast.engine.data import UNLABELLED
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        other = data.stream("retain", batch_size=self.forget_batch_size, seed=run.seed + 2)
        run.track(mismatched=other)

        def mismatched(part: Batch) -> torch.Tensor:
            """Labels of unrelated rows, at the positions that `part` has labels at as far as both reach."""
            rows = other.batch(other.take(len(part.input_ids) * part.ranks))
            width = part.labels.shape[1]
            labels = F.pad(rows.labels[:, :width], (0, max(width - rows.labels.shape[1], 0)), value=UNLABELLED)
            return labels.where(part.labels != UNLABELLED, UNLABELLED)

        def loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            ascent = -next_token_loss(logits, part.labels, part.label_count)
            return ascent + self.mismatch_weight * next_token_loss(logits, mismatched(part), part.label_count)

        return loss


PRESETS = {
    "llmu": LLMU(),
    "llmu-large": LLMU(
        outer_steps=600,
        learning_rate=1e-5,
        optimizer="schedule-free-adamw",
        forget_weight=1.0,
        forget_batch_size=64,
        retain_batch_size=64,
        micro_batch=8,
    ),
}
