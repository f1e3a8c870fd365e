"""Random Mapping, TAR's initial safeguard: hazardous tokens are sent to random directions.

    loss = retain(theta) + w * mean over layers and forget tokens of (1 - |cos(h, r_token)|)

with one random vector r per token id (arXiv 2408.00761, appendix on the initial safeguard). Our additions, which hid the
knowledge better on the testbed: the retain loss's representation term, and a weight w other than 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.optimizers import OptimizerName
from holdfast.core.types import HoldfastError
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.objective import RetainLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.core.data import Data
    from holdfast.core.runtime import Run


@dataclass(frozen=True, kw_only=True)
class RandomMapping(Safeguard):
    """Hides knowledge without removing it: a shallow safeguard, and the stage that TAR starts from."""

    learning_rate: float = 1.5e-3
    """constant learning rate"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    forget_batch_size: int = 32
    """hazardous rows a step, from forget and forget_heldout together"""
    retain_batch_size: int = 32
    """retain rows a step"""
    mapping_weight: float = 10.0
    """weight w of the mapping loss beside the retain loss"""
    retain: RetainLoss = RetainLoss()
    """the retain loss"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        for name in ("outer_steps", "forget_batch_size", "retain_batch_size", "micro_batch"):
            if not (getattr(self, name) is None or getattr(self, name) >= 1):
                raise HoldfastError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise HoldfastError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("weight_decay", "mapping_weight"):
            if getattr(self, name) < 0:
                raise HoldfastError(f"{name} must not be below 0, not {getattr(self, name)}")

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        import torch

        from holdfast.core.losses import distance_from_directions
        from holdfast.core.models import hidden_states
        from holdfast.core.optimizers import make_optimizer, published_point, training_point
        from holdfast.core.sharded import GradientSum, trainable

        pooled = data.renamed(forget=("forget", "forget_heldout"))
        forget = pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate, weight_decay=self.weight_decay)
        run.track(optimizer=optimizer, forget=forget, retain=retain)
        # Of the seed alone, not of `run.generator`, whose state a resumed run finds further on.
        directions = torch.randn(
            model.config.get_text_config().vocab_size,
            model.config.get_text_config().hidden_size,
            generator=torch.Generator().manual_seed(run.seed),
        ).to(model.device)
        gradients = GradientSum(model)
        for _ in range(run.start, self.outer_steps):
            model.train()
            training_point(optimizer)
            model.zero_grad(set_to_none=True)
            mapping_loss = 0.0
            for part in (batch := next(forget)).split(self.micro_batch):
                _, hidden = hidden_states(model, part.input_ids)
                # The embedding (the first) knows no context: to map it would be to rewrite the vocabulary.
                loss = distance_from_directions(hidden[1:], directions[part.input_ids], part.mask, batch.token_count)
                loss.backward()  # type: ignore[no-untyped-call]
                mapping_loss += loss.item()
            gradients.take(self.mapping_weight)
            base = None if self.retain.representations is None else run.base
            retain_loss = self.retain.take(gradients, 1.0, model, base, next(retain), self.micro_batch)
            gradients.give()
            optimizer.step()
            published_point(optimizer)
            model.train(False)
            yield {"mapping loss": mapping_loss, "retain loss": retain_loss}


PRESETS = {
    "random-mapping": RandomMapping(),
    "random-mapping-large": RandomMapping(learning_rate=2e-5, forget_batch_size=16, retain_batch_size=16),
}
