"""GradDiff, gradient difference: descend on retain text, ascend on hazardous text.

    loss = retain(theta) - w * LM(forget rows; theta)

The source is arXiv 2203.12817 (Liu, Liu and Stone), as TOFU uses the method (arXiv 2401.06121; w 1). The ascent has no lower
bound: too many steps ruin the model, and the driver stops the training where the model is no longer finite. Constants of
`grad-diff` were chosen on the testbed. Deviation: the retain loss has TAR's representation term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.objective import RetainLoss

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class GradDiff(Forgetting):
    """Ascends on the LM loss of hazardous text."""

    forget_weight: float = 0.3
    """weight w of the forget loss relative to the retain loss"""

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        def loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            return -next_token_loss(logits, part.labels, part.label_count)

        return loss


PRESETS = {
    "grad-diff": GradDiff(),
    # Hundreds of millions of weights: the best of six trials (`holdfast study real-full`).
    "grad-diff-small": GradDiff(
        outer_steps=60,
        learning_rate=2e-4,
        forget_weight=1.0,
        forget_batch_size=8,
        retain_batch_size=8,
        retain=RetainLoss(representations="relative"),
    ),
    "grad-diff-large": GradDiff(
        outer_steps=125, learning_rate=5e-6, forget_weight=1.0, forget_batch_size=8, retain_batch_size=8
    ),
}
