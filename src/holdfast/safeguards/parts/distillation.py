"""A loss that keeps what a model knew, on text that needs no true labels, since the original model may have written it.

loss = KL(teacher || model), mean over unpadded tokens, of a frozen teacher; or the LM loss on the text itself
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError
from holdfast.safeguards.base import Term
from holdfast.safeguards.parts.generated import HazardWords, generate_rows
from holdfast.safeguards.parts.objective import RetainLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data, Encoded, Stream
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum

_LOSSES = {
    "teacher": RetainLoss(language_model_weight=0.0, representations=None, distillation_weight=1.0),
    "text": RetainLoss(language_model_weight=1.0, representations=None),
}


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The text of a distillation, and its amount."""

    text: tuple[Literal["retain", "distill", "generated"], ...] = ("generated",)
    """sources of the text: `retain` rows; `distill` rows, which the domain provides; `generated` text of the original model"""
    generated_rows: int = 4096
    """rows that the original model generates; ability follows the coverage of this text"""
    hazard_words: HazardWords = "avoided"
    """what becomes of a hazard word in generated text: another word in its place, or no such row"""
    batch_size: int = 32
    """rows a step"""
    weight: float = 1.0
    """weight of the loss"""
    learns: Literal["teacher", "text"] = "teacher"
    """what is learned: the teacher's predictions at every token, or the text alone. The text teaches a little less in as many
    updates and says nothing of words that were not written; its loss needs no teacher, whose pass is a quarter of the cost"""

    def __post_init__(self) -> None:
        check_settings(self, positive=("generated_rows", "batch_size"), not_negative=("weight",))
        if not self.text:
            raise HoldfastError("distillation needs some text: retain, distill or generated")

    def shortened(self) -> Distillation:
        """The same on text that is there, in place of text that the original model generates."""
        return replace(self, text=tuple(dict.fromkeys("retain" if t == "generated" else t for t in self.text)))

    @property
    def compares(self) -> bool:
        """Whether the loss needs a teacher."""
        return _LOSSES[self.learns].compares

    def stream(self, data: Data, run: Run) -> Stream:
        """Endless batches of the text; a run that goes on has its generated text from before."""
        from holdfast.engine.data import Stream
        from holdfast.engine.written import written_once

        def generated() -> list[Encoded]:
            return generate_rows(run.base, data, self.generated_rows, run.seed, self.hazard_words)

        rows = []
        for text in self.text:
            rows += written_once(run, "generated", generated) if text == "generated" else data.rows(text)
        retain = data.stream("retain", batch_size=self.batch_size, seed=run.seed)
        return Stream(rows, self.batch_size, run.seed + 3, retain.pad, retain.device)

    def take(
        self,
        gradients: GradientSum,
        weight: float,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        batch: Batch,
        micro_batch: int | None,
    ) -> float:
        """Add `weight` times the weighted gradient of the loss to `gradients`; return the loss, not weighted.

        `teacher` may be None where the loss `compares` nothing.
        """
        return _LOSSES[self.learns].take(gradients, weight * self.weight, model, teacher, batch, micro_batch)

    def apart(
        self,
        setting: str,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        batch: Batch,
        micro_batch: int | None,
        scale: float = 1.0,
    ) -> Term:
        """The loss as a term for `holdfast calibrate`; the arguments are as those of `RetainLoss.terms`."""
        alone = replace(self, weight=1.0)
        return Term(
            name=f"{'distillation' if self.learns == 'teacher' else 'language model'} on {' and '.join(self.text)} text",
            setting=f"{setting}.weight",
            weight=scale * self.weight,
            keeps=True,
            take=lambda gradients: alone.take(gradients, 1.0, model, teacher, batch, micro_batch),
        )

    def term(self, data: Data, run: Run) -> DistillationTerm:
        """The loss towards the original model as a term of a run, which tracks its text."""
        term = DistillationTerm(self, self.stream(data, run), run.base if self.compares else None)
        run.track(text=term.text)
        return term


@dataclass(frozen=True)
class DistillationTerm:
    """Distillation of one teacher on one stream of text."""

    distillation: Distillation
    text: Stream
    teacher: PreTrainedModel | None

    def take(self, gradients: GradientSum, weight: float, model: PreTrainedModel, micro_batch: int | None) -> float:
        """Add the gradient for the next batch, as `Distillation.take` does; return the weighted loss."""
        batch = next(self.text)
        loss = self.distillation.take(gradients, weight, model, self.teacher, batch, micro_batch)
        return self.distillation.weight * loss
