"""Staying close to a frozen model on text that needs no true labels.

loss = KL(teacher || model), mean over unpadded tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from holdfast.core.types import HoldfastError
from holdfast.safeguards.objective import RetainLoss, check_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data, Stream
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum

_DIVERGENCE = RetainLoss(language_model_weight=0.0, representations=None, distillation_weight=1.0)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What text is distilled on, and how much of it."""

    text: tuple[Literal["retain", "distill", "generated"], ...] = ("generated",)
    """`retain` rows; `distill` rows, which the domain gives for this; text that the original model writes itself"""
    generated_rows: int = 4096
    """rows that it writes; ability follows the coverage of this text"""
    batch_size: int = 32
    """rows a step"""
    weight: float = 1.0
    """weight of the loss"""

    def __post_init__(self) -> None:
        check_settings(self, positive=("generated_rows", "batch_size"), not_negative=("weight",))
        if not self.text:
            raise HoldfastError("distillation needs some text: retain, distill or generated")

    def stream(self, data: Data, run: Run) -> Stream:
        """Endless batches of the text."""
        from holdfast.engine.data import Stream
        from holdfast.safeguards.generated import generate_rows

        rows = []
        for text in self.text:
            if text == "generated":
                rows += generate_rows(run.base, data, self.generated_rows, run.seed)
            else:
                rows += data.rows(text)
        like = data.stream("retain", batch_size=self.batch_size, seed=run.seed)
        return Stream(rows, self.batch_size, run.seed + 3, like.pad, like.device)

    def take(
        self,
        gradients: GradientSum,
        weight: float,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        batch: Batch,
        micro_batch: int | None,
    ) -> float:
        """Add `weight` times the weighted gradient of the loss to `gradients`; return the loss, not weighted."""
        return _DIVERGENCE.take(gradients, weight * self.weight, model, teacher, batch, micro_batch)
