"""Preference pairs with the margins of a frozen reference model, and the DPO loss on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data


@dataclass(frozen=True)
class PairBatch:
    """The two completions of the same prompts, and the reference's margin between them."""

    chosen: Batch
    """refusals"""
    rejected: Batch
    """harmful completions"""
    margins: torch.Tensor
    """log p(chosen) - log p(rejected) of each pair under the reference, summed over the completion's tokens; shape B"""

    def split(self, rows: int | None) -> Iterator[PairBatch]:
        """Microbatches of at most `rows` pairs, which keep the counts of the whole."""
        start = 0
        for chosen, rejected in zip(self.chosen.split(rows), self.rejected.split(rows), strict=True):
            end = start + len(chosen.input_ids)
            yield PairBatch(chosen, rejected, self.margins[start:end])
            start = end


class Pairs:
    """Endless pairs of one name, in an order that depends on the seed alone.

    The margins of the reference are computed once, over all pairs, before the first step; later the reference is not needed.
    """

    def __init__(self, data: Data, name: str, batch_size: int, seed: int, reference: PreTrainedModel) -> None:
        """Raises:
        HoldfastError: the rows behind `name` are no preference rows.
        """
        import torch

        from holdfast.engine.data import collate
        from holdfast.engine.losses import completion_log_probability
        from holdfast.engine.predictions import predictions

        self._stream = data.stream(name, batch_size=batch_size, seed=seed, side="rejected")
        self._chosen = data.rows(name, side="chosen")
        margins = list[torch.Tensor]()
        with torch.no_grad():
            for start in range(0, len(self._chosen), batch_size):
                sides = [rows[start : start + batch_size] for rows in (self._chosen, self._stream.rows)]
                log_p = [
                    completion_log_probability(predictions(reference, part.input_ids), part.labels)
                    for part in (collate(side, self._stream.pad, self._stream.device) for side in sides)
                ]
                margins.append(log_p[0] - log_p[1])
        self._margins = torch.cat(margins)

    def __iter__(self) -> Pairs:
        return self

    def __next__(self) -> PairBatch:
        indices = self._stream.draw(self._stream.batch_size)
        chosen = self._stream.batch([self._chosen[index] for index in indices])
        rejected = self._stream.batch([self._stream.rows[index] for index in indices])
        return PairBatch(chosen, rejected, self._margins[chosen.share(indices)])

    def state_dict(self) -> dict[str, Any]:
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stream.load_state_dict(state)


def dpo(model: PreTrainedModel, part: PairBatch, beta: float) -> torch.Tensor:
    """The DPO loss of a microbatch; adds up over microbatches and ranks."""
    from holdfast.engine.losses import completion_log_probability, dpo_loss
    from holdfast.engine.predictions import predictions

    chosen, rejected = (
        completion_log_probability(predictions(model, side.input_ids), side.labels)
        for side in (part.chosen, part.rejected)
    )
    return dpo_loss(chosen, rejected, part.margins, beta, part.rejected.row_count)
