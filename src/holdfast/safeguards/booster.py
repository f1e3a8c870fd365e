"""Booster: reduces the gain that a harmful training step would bring.

    gradient = grad align(theta) + lambda * ( grad LM_h(theta) - grad LM_h(theta - alpha * g / |g|) ),   g = grad LM_h(theta)

`align` is the retain loss plus the LM loss of the refusals, and LM_h is the LM loss of the harmful completions. The difference
of the two gradients is, to first order, the gradient of how much a normalised step along the harmful gradient lowers the
harmful loss (arXiv 2409.01586, equation 3 and algorithm 1; lambda 5, alpha 0.1 in its code, rate 5e-4 with LoRA of rank 32, 20
epochs). Constants of `booster` were chosen on the testbed. Deviations: all weights are trained, so that alpha is a length over
all of them; the retain loss has TAR's representation term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdfast.core.ranges import check_settings
from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.objective import take_gradient

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class Booster(Forgetting):
    """Minimises how much one simulated harmful step lowers the harmful loss."""

    forget_loss_name: ClassVar[str] = "gain of a harmful step"

    forget_weight: float = 5.0
    """lambda"""
    harmful_step: float = 0.1
    """alpha, the length of the simulated step, over all weights"""
    refusal_weight: float = 1.0
    """weight of the refusals relative to the retain loss; 0 where the rows are plain text"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("harmful_step",))

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        def loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            return next_token_loss(logits, part.labels, part.label_count)

        return loss

    def take_forget(self, gradients: GradientSum, loss: Loss, model: PreTrainedModel, batch: Batch) -> float:
        from holdfast.engine.sharded import displaced

        loss_before = 0.0
        for part in batch.split(self.micro_batch):
            value = loss(part)
            value.backward()  # type: ignore[no-untyped-call]
            loss_before += value.item()
        gradients.take(self.forget_weight, keep=True)
        with displaced(model, -self.harmful_step):
            loss_after = take_gradient(gradients, -self.forget_weight, loss, batch, self.micro_batch)
        return loss_before - loss_after


PRESETS = {
    "booster": Booster(),
    "booster-large": Booster(outer_steps=1000, learning_rate=1e-5, forget_batch_size=8, retain_batch_size=8),
}
