"""The retain loss that safeguards share: stay good at benign text, and close to the original model inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.types import Distance

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.core.data import Batch
    from holdfast.core.sharded import GradientSum


@dataclass(frozen=True, kw_only=True)
class RetainLoss:
    """LM loss on retain rows, plus the mean distance of all hidden states to the original model's.

    Arxiv 2408.00761, section 4.3: the original chat model's, not those of the model after the initial safeguard.
    Deviation from the published code: padding is masked.
    """

    representations: Distance | None = "l2"
    """`l2` is the norm, as in the paper; `mse` the mean square; None leaves the term out"""
    representation_weight: float = 1.0
    """weight of that term beside the LM loss"""

    def __call__(self, model: PreTrainedModel, base: PreTrainedModel | None, batch: Batch) -> torch.Tensor:
        """A scalar; over microbatches and ranks it adds up to the loss of the whole batch."""
        import torch

        from holdfast.core.losses import next_token_loss, representation_distance
        from holdfast.core.models import hidden_states

        if self.representations is None:
            return next_token_loss(
                model(input_ids=batch.input_ids, use_cache=False).logits, batch.labels, batch.label_count
            )
        assert base is not None
        logits, hidden = hidden_states(model, batch.input_ids)
        with torch.no_grad():
            _, reference = hidden_states(base, batch.input_ids)
        distance = representation_distance(hidden, reference, batch.mask, batch.token_count, self.representations)
        return next_token_loss(logits, batch.labels, batch.label_count) + self.representation_weight * distance

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
        total = 0.0
        for part in batch.split(micro_batch):
            loss = self(model, base, part)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        gradients.take(weight)
        return total
