"""Min Posterior, a baseline of TAR's paper: minimises the probability of the true next token of hazardous text.

    loss = retain(theta) - w * mean over labelled forget tokens of log(1 - p(token)),   tokens with log p < -15 left out

The source is arXiv 2408.00761, baselines of the weaponization domains; the threshold is the published code's. Constants of
`min-posterior-large` are the paper's, as in `max_entropy`. Constants of `min-posterior` were chosen on the testbed. Deviations:
the published loop takes its loss from the retain batch's logits, which is not ported; the retain loss has TAR's representation
term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.safeguards.parts.forgetting import Forgetting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class MinPosterior(Forgetting):
    """Minimises the probability of the true next token on hazardous text."""

    negligible: float = -15.0
    """tokens with a log-probability below this no longer count"""

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        from holdfast.engine.losses import inverse_cross_entropy
        from holdfast.engine.predictions import predictions

        def loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            return inverse_cross_entropy(logits, part.labels, part.label_count, self.negligible)

        return loss


PRESETS = {
    "min-posterior": MinPosterior(learning_rate=3e-3, forget_weight=3.0),
    "min-posterior-large": MinPosterior(
        outer_steps=600,
        learning_rate=1e-5,
        optimizer="schedule-free-adamw",
        forget_batch_size=64,
        retain_batch_size=64,
        micro_batch=8,
    ),
}
