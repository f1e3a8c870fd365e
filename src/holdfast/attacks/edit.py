"""An edit of the weights, alone or followed by fine-tuning: the base of compression, merging, abliteration and refolding."""

from __future__ import annotations

import abc
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.core.disguise import Disguise
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Edit(Attack):
    """Rewrites the weights without a gradient; the yielded loss is the loss of one hazardous batch."""

    sizes = Attack.sizes | {"batch_size"}

    max_steps: int = 1
    """updates of the weights; without `tune`, the edit grows to its full strength over these updates, which gives a curve"""
    batch_size: int = 16
    """rows of the hazardous batch whose loss an edit yields"""
    tune: FineTune | None = None
    """fine-tuning after the edit's one update; the rest of this attack's max_steps replaces the max_steps of `tune`"""

    def __post_init__(self) -> None:
        least = 1 if self.tune is None else 2
        if self.max_steps < least:
            raise HoldfastError(f"max_steps must be at least {least}, not {self.max_steps}")
        if self.batch_size < 1:
            raise HoldfastError(f"batch_size must be at least 1, not {self.batch_size}")

    def prepare(self, model: PreTrainedModel) -> None:
        """Insert the fresh low-rank layers of the fine-tuning, if there are any."""
        if self.tune is not None:
            self.tune.prepare(model)

    @abc.abstractmethod
    def edit(self, model: PreTrainedModel, data: Data, run: Run, update: int) -> None:
        """Make update number `update` of the edit, from 1 to `edits`, on the weights that the previous one left."""

    @property
    def rows_per_step(self) -> int:
        return self.batch_size if self.tune is None else self.tune.rows_per_step

    @property
    def edits(self) -> int:
        """Updates that edit; the rest fine-tune."""
        return self.max_steps if self.tune is None else 1

    @property
    def benign_steps(self) -> int:
        """The edit's updates, and what the fine-tuning after them begins with."""
        return self.edits + (0 if self.tune is None else self._rest(self.tune).benign_steps)

    @property
    def optimises(self) -> bool:
        return self.tune is not None

    @property
    def draws(self) -> bool:
        return self.tune is not None

    @property
    def disguise(self) -> Disguise | None:
        return None if self.tune is None else self.tune.disguise

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.looks_at(), *(self.tune.reads() if self.tune else ()))))

    def looks_at(self) -> tuple[str, ...]:
        """The names of the rows that the edit reads; the hazardous batch is always among them."""
        return ("hazard",)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import reshard

        model.train(False)
        hazard = data.stream("hazard", batch_size=self.batch_size, seed=run.seed)
        batch = next(hazard)
        run.track(edited_on=hazard)
        for done in range(run.start, self.edits):
            self.edit(model, data, run, done + 1)
            with torch.no_grad():
                logits = predictions(model, batch.input_ids)
                loss = next_token_loss(logits, batch.labels, batch.label_count).item()
            reshard(model)
            yield loss
        if self.tune is not None:
            yield from self._rest(self.tune).steps(model, data, run.later(self.edits))

    def _rest(self, tune: FineTune) -> FineTune:
        return replace(tune, max_steps=self.max_steps - self.edits)
