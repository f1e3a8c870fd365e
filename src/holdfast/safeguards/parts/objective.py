"""The retain loss that safeguards share: benign text stays likely, and hidden states stay near the original model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.core.ranges import check_settings
from holdfast.core.types import Distance
from holdfast.safeguards.base import Term

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch
    from holdfast.engine.sharded import GradientSum
    from holdfast.safeguards.parts.pairs import PairBatch

    Rows = TypeVar("Rows", Batch, PairBatch)


@dataclass(frozen=True, kw_only=True)
class RetainLoss:
    """a * LM loss on retain rows + b * mean distance of hidden states to the original model's + c * KL(original || model).

    By default a = b = 1 and c = 0: arXiv 2408.00761, section 4.3, and its published code. The original is the chat model
    before any safeguard, not the model after the initial one. Deviation from the published code: padding is masked.
    """

    language_model_weight: float = 1.0
    """a, weight of the LM loss"""
    representations: Distance | None = "l2"
    """distance of hidden states: `l2` is the norm, as in the published code; `mse` is the mean square; None: no such term"""
    representation_weight: float = 1.0
    """b, weight of the distance of hidden states"""
    layers: tuple[int, ...] | None = None
    """hidden states that are compared, 0 is the embedding's; None: all"""
    distillation_weight: float = 0.0
    """c, weight of the KL to the original model"""

    def __post_init__(self) -> None:
        check_settings(self, not_negative=("language_model_weight", "representation_weight", "distillation_weight"))

    @property
    def compares(self) -> bool:
        """Whether the loss needs the original model."""
        return self.representations is not None or self.distillation_weight > 0

    def __call__(self, model: PreTrainedModel, base: PreTrainedModel | None, batch: Batch) -> torch.Tensor:
        """The retain loss of a microbatch, a scalar; over microbatches and ranks the sum is the loss of the whole batch."""
        import torch

        from holdfast.engine.losses import distillation_loss, next_token_loss, representation_distance
        from holdfast.engine.predictions import predictions

        if not self.compares:
            logits = predictions(model, batch.input_ids)
            return self.language_model_weight * next_token_loss(logits, batch.labels, batch.label_count)
        assert base is not None
        logits, hidden = self._read(model, batch, self.language_model_weight > 0 or self.distillation_weight > 0)
        with torch.no_grad():
            original, reference = self._read(base, batch, self.distillation_weight > 0)
        loss = hidden[-1].new_zeros(())
        if self.language_model_weight:
            loss = self.language_model_weight * next_token_loss(logits, batch.labels, batch.label_count)
        if self.representations is not None:
            distance = representation_distance(hidden, reference, batch.mask, batch.token_count, self.representations)
            loss = loss + self.representation_weight * distance
        if self.distillation_weight:
            divergence = distillation_loss(logits, original, batch.mask, batch.token_count)
            loss = loss + self.distillation_weight * divergence
        return loss

    def _read(self, model: PreTrainedModel, batch: Batch, whole: bool) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """The logits, where the whole model is read, and the hidden states that are compared."""
        from holdfast.engine.stream import hidden_states, states_alone

        if not whole:
            return None, states_alone(model, batch.input_ids, self.layers, several=True)
        logits, hidden = hidden_states(model, batch.input_ids, several=True)
        return logits, hidden if self.layers is None else tuple(hidden[index] for index in self.layers)

    def take(
        self,
        gradients: GradientSum,
        weight: float,
        model: PreTrainedModel,
        base: PreTrainedModel | None,
        batch: Batch,
        micro_batch: int | None,
    ) -> float:
        """Add `weight` times the gradient of the loss to `gradients`; return the loss."""
        from torch.profiler import record_function

        from holdfast.engine.aside import lent

        with record_function("retain"), lent(base, model):
            return take_gradient(gradients, weight, lambda part: self(model, base, part), batch, micro_batch)

    def terms(
        self,
        setting: str,
        model: PreTrainedModel,
        base: PreTrainedModel | None,
        batch: Batch,
        micro_batch: int | None,
        scale: float = 1.0,
    ) -> tuple[Term, ...]:
        """The terms of the loss apart, for `holdfast calibrate`.

        Args:
            setting: the path of this loss in its safeguard.
            model: that is trained.
            base: the original model, where the loss compares.
            batch: retain rows.
            micro_batch: rows at once.
            scale: the weight of the whole loss in its safeguard.
        """
        nothing = replace(self, language_model_weight=0.0, representations=None, distillation_weight=0.0)
        apart = (
            ("language model", "language_model_weight", replace(nothing, language_model_weight=1.0)),
            (
                f"hidden states, {self.representations}",
                "representation_weight",
                replace(nothing, representations=self.representations, representation_weight=1.0),
            ),
            ("KL to the original", "distillation_weight", replace(nothing, distillation_weight=1.0)),
        )

        def taking(alone: RetainLoss) -> Callable[[GradientSum], float]:
            return lambda gradients: alone.take(gradients, 1.0, model, base, batch, micro_batch)

        return tuple(
            Term(
                name=f"retain: {name}",
                setting=f"{setting}.{field}",
                weight=scale * getattr(self, field),
                keeps=True,
                take=taking(alone),
            )
            for name, field, alone in apart
            if getattr(self, field) and not (field == "representation_weight" and self.representations is None)
        )

    def against_sinks(self, setting: str) -> dict[str, Any]:
        """A distance by which a sink counts like any other token, in place of one by which it is nearly all of the loss."""
        relative = {"l2": "relative", "mse": "relative_mse"}.get(self.representations or "")
        return {f"{setting}.representations": relative} if relative and self.representation_weight else {}


def take_gradient(
    gradients: GradientSum,
    weight: float,
    loss: Callable[[Rows], torch.Tensor],
    batch: Rows,
    micro_batch: int | None,
) -> float:
    """Add `weight` times the gradient of a loss to `gradients`, microbatch by microbatch; return the loss."""
    total, parts = 0.0, list(batch.split(micro_batch))
    gradients.expect(len(parts))
    for part in parts:
        value = loss(part)
        value.backward()  # type: ignore[no-untyped-call]
        total += value.item()
    gradients.take(weight)
    return total


def language_model_loss(model: PreTrainedModel) -> Callable[[Batch], torch.Tensor]:
    """The LM loss of a microbatch on its labelled tokens."""
    from holdfast.engine.losses import next_token_loss
    from holdfast.engine.predictions import predictions

    def loss(part: Batch) -> torch.Tensor:
        logits = predictions(model, part.input_ids)
        return next_token_loss(logits, part.labels, part.label_count)

    return loss
