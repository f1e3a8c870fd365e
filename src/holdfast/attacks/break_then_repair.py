"""Breaks the model on purpose, then repairs the model: the fair test of safeguards that destroy a tampered model.

    kick      theta <- AdamW(LM(hazardous rows)) at a rate that ruins the model, for a few steps
    settle    theta <- AdamW(LM(hazardous and benign rows) + w KL(defended model || theta; benign rows)) at a small rate

A self-destructing safeguard (SEAM, arXiv 2505.12186) ties harmful descent to the collapse of ability, and counts a collapsed
model as a win for the defender. An attacker can go on after the collapse: the attacker has benign text and, at the start, a
working model to distil from. Both phases and all constants are ours. The optimizer starts afresh between the phases, because
the second moments of the kick would slow the settling. The defended model is read by putting its weights back into the same
model, so the attack costs memory for a copy of the weights but no second model. Distillation uses benign rows alone, because
distillation on hazardous rows teaches the safeguard.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import OptimizerName

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class BreakThenRepair(Attack):
    """Fine-tunes at a large rate on hazardous rows (the kick), then at a small rate with benign replay (the settling)."""

    family = "break-then-repair"
    control = "refusals that hang on one direction of the hidden states"

    sizes = Attack.sizes | {"batch_size", "weight_decay"}

    hazard: Literal["hazard", "hazard_ood", "hazard_all"] = "hazard_all"
    """hazardous rows of the attacker: in distribution, out of distribution, or both"""
    kick_steps: int = 4
    """steps of the kick, on hazardous rows alone; where max_steps is not larger than kick_steps, all steps but the last"""
    kick_learning_rate: float = 1e-2
    """learning rate of the kick"""
    learning_rate: float = 1e-3
    """learning rate of the settling"""
    benign_share: float = 0.5
    """share of each batch that is benign during the settling"""
    kl_weight: float = 0.0
    """w, the weight of the divergence from the defended model, on the benign rows of the batch; 0: no divergence"""
    batch_size: int = 32
    """rows a step"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name, for both phases"""
    weight_decay: float = 0.01
    """weight decay: decoupled for AdamW and schedule-free AdamW, an L2 penalty for the other optimizers"""

    def __post_init__(self) -> None:
        for name in ("max_steps", "kick_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HoldfastError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("kick_learning_rate", "learning_rate"):
            if not getattr(self, name) > 0:
                raise HoldfastError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("kl_weight", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise HoldfastError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not 0 < self.benign_rows < self.batch_size:
            raise HoldfastError(
                f"benign_share must leave rows of both kinds in a batch of {self.batch_size}, not {self.benign_share}"
            )

    def shortened(self) -> tuple[Self, ...]:
        """Both phases: the second one has a teacher."""
        return (replace(self, kick_steps=1),)

    @property
    def benign_steps(self) -> int:
        """The kick: it descends on hazardous rows alone and leaves a loss that is higher."""
        return min(self.kick_steps, self.max_steps - 1)

    @property
    def benign_rows(self) -> int:
        """Benign rows in a batch of the settling."""
        return round(self.benign_share * self.batch_size)

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def reads(self) -> tuple[str, ...]:
        return (self.hazard, "benign")

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.anatomy import as_attacker
        from holdfast.engine.losses import distillation_loss, next_token_loss
        from holdfast.engine.optimizers import make_optimizer, published_point, set_learning_rate, training_point
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import Snapshot, clear_gradients, reshard, trainable

        reshard(model)  # whoever measured the model before may have left it gathered
        weights = trainable(model)
        as_attacker(model)
        hazard, benign = (data.stream(name, batch_size=self.batch_size, seed=run.seed) for name in self.reads())
        optimizer = make_optimizer(self.optimizer, weights, self.kick_learning_rate, weight_decay=self.weight_decay)
        unused = copy.deepcopy(optimizer.state_dict())
        run.track(optimizer=optimizer, hazard=hazard, benign=benign)
        defended = Snapshot(model) if self.kl_weight else None
        if defended is not None:
            run.track(found=defended)  # the name in stored states
        for step in range(run.start, self.max_steps):
            settling = step >= self.benign_steps
            if step == self.benign_steps:
                optimizer.load_state_dict(unused)
            set_learning_rate(optimizer, self.learning_rate if settling else self.kick_learning_rate)
            replay = benign.take(self.benign_rows if settling else 0)
            batch = hazard.batch(hazard.take(self.batch_size - len(replay)) + replay)
            training_point(optimizer)
            clear_gradients(weights)
            total = 0.0
            for part in batch.split(run.micro_batch):
                logits = predictions(model, part.input_ids)
                loss = next_token_loss(logits, part.labels, part.label_count)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            if defended is not None and settling:
                attacked = Snapshot(model)
                for part in benign.batch(replay).split(run.micro_batch):  # one part's logits of the teacher at a time
                    defended.restore()
                    with torch.no_grad():
                        teacher = model(input_ids=part.input_ids, use_cache=False).logits
                    attacked.restore()
                    logits = predictions(model, part.input_ids)
                    divergence = distillation_loss(logits, teacher, part.mask, part.token_count)
                    (self.kl_weight * divergence).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            published_point(optimizer)
            yield total


_BASE = BreakThenRepair()

PRESETS = {
    # Small models, such as the testbed's.
    "kick-1e-2-settle-1e-3": _BASE,
    "kick-1e-2-settle-3e-4": replace(_BASE, learning_rate=3e-4),
    "kick-1e-2-settle-3e-4-kl": replace(_BASE, learning_rate=3e-4, kl_weight=1.0),
    # Models of billions of weights: ten times the usual rate of such a model, as on the testbed.
    "kick-2e-4-settle-2e-5-kl-large": replace(
        _BASE, kick_steps=16, kick_learning_rate=2e-4, learning_rate=2e-5, kl_weight=1.0, max_steps=1000
    ),
}

FAMILIES = {
    "break-then-repair": Family(
        _BASE,
        {
            "kick_learning_rate": Log(2e-3, 5e-2),
            "kick_steps": Choice((2, 4, 8)),
            "learning_rate": Log(1e-4, 1e-2),
            "benign_share": Choice((0.25, 0.5)),
            "kl_weight": Choice((0.0, 1.0)),
            "max_steps": Choice((80, 160, 320)),
        },
    ),
}
