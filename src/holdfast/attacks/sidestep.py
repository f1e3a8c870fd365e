"""Steps aside: trains in directions that the hazard's own gradient does not take, where a safeguard has not looked.

    U_k: leading left singular vectors of the hazardous loss's gradient, for each linear map of the defended model
    sidestep       W_t - W_0 has no part in U_k, at every update
    kick, settle   so for a few updates at a large rate; then ordinary fine-tuning at a small rate

A safeguard that is trained against gradient descent guards the directions that descent takes first. arXiv 2605.14605 (read: the
abstract, and that its attacks SIDESTEPPER and KICK-SETTLE go around the protected update directions) finds this weakness in
fifteen defences. We have not read how its attacks find and avoid these directions. The choice of U_k by the gradient at the
defended weights, the projection of the weights in place of the gradients (Adam's scaling would leak back), and all constants
are ours. Embeddings, norms and biases are free.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.core.disguise import Disguise
    from holdfast.engine.anatomy import LinearMap
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Sidestep(Attack):
    """Fine-tuning whose change of every linear map stays out of the leading directions of the hazard's gradient."""

    family = "steps aside from the guarded directions"
    control = "refusals that hang on one direction of the hidden states"
    sizes = Attack.sizes | {"probes"}

    directions: int = 4
    """k, directions that each linear map must not write into"""
    probes: int = 4
    """batches over which the gradient is averaged"""
    kick_steps: int = 0
    """updates that step aside, at `kick_learning_rate`, before the fine-tuning settles freely; 0: every update steps aside"""
    kick_learning_rate: float = 1e-2
    """learning rate of the kick"""
    tune: FineTune = FineTune()
    """the fine-tuning of all weights; the max_steps of this attack replaces the max_steps of `tune`"""

    def __post_init__(self) -> None:
        check_settings(
            self, positive=("max_steps", "directions", "probes", "kick_learning_rate"), not_negative=("kick_steps",)
        )
        if self.tune.lora_rank or self.tune.optimizer == "schedule-free-adamw":
            raise HoldfastError(
                "stepping aside changes all weights at their present point; give it fine-tuning with lora_rank 0 and an "
                "optimizer that is not schedule-free"
            )

    @property
    def _kick(self) -> int:
        """Updates of the kick; where max_steps is not larger than kick_steps, all updates but the last."""
        return min(self.kick_steps, self.max_steps - 1)

    @property
    def benign_steps(self) -> int:
        """The kick, which leaves a loss that is higher, and what the fine-tuning after it begins with."""
        return self._kick + self._tuning.benign_steps

    @property
    def disguise(self) -> Disguise | None:
        return self.tune.disguise

    @property
    def rows_per_step(self) -> int:
        return self.tune.rows_per_step

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.tune.hazard, *self.tune.reads())))

    @property
    def _tuning(self) -> FineTune:
        return replace(self.tune, max_steps=self.max_steps - self._kick)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        from holdfast.engine.anatomy import as_attacker, linear_maps

        as_attacker(model)
        maps = linear_maps(model)
        guarded = _Guarded(maps)
        run.track(guarded=guarded)
        if run.start == 0:
            self._look(model, data, run, guarded)
        if self.kick_steps == 0:
            for loss in self._tuning.steps(model, data, run):
                guarded.step_aside()
                yield loss
            return
        if run.start < self._kick:
            kick = replace(
                self.tune,
                max_steps=self._kick,
                learning_rate=self.kick_learning_rate,
                schedule="constant",
                warmup_steps=0,
                benign_share=0.0,
                benign_first=0.0,
                benign_flip=0.0,
            )
            for loss in kick.steps(model, data, run):
                guarded.step_aside()
                yield loss
        yield from self._tuning.steps(model, data, run.later(self._kick))

    def _look(self, model: PreTrainedModel, data: Data, run: Run, guarded: _Guarded) -> None:
        """Find the guarded directions, from the gradient at the defended weights."""
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import clear_gradients, reshard, trainable

        reshard(model)
        weights = trainable(model)
        rows = data.stream(
            self.tune.hazard, batch_size=self.tune.batch_size, seed=run.seed, disguise=self.tune.disguise
        )
        clear_gradients(weights)
        for _ in range(self.probes):
            for part in next(rows).split(run.micro_batch):
                logits = predictions(model, part.input_ids)
                next_token_loss(logits, part.labels, part.label_count).backward()  # type: ignore[no-untyped-call]
        guarded.look(self.directions)
        clear_gradients(weights)


class _Guarded:
    """For each linear map, directions of its outputs that stay as they were, and what the map wrote there at first."""

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        self._maps = maps
        self._bases: list[list[torch.Tensor]] = []
        self._written: list[list[torch.Tensor]] = []

    def look(self, count: int) -> None:
        """Take the leading directions of the gradients that the maps hold now."""
        import torch

        from holdfast.engine.sharded import whole

        for found in self._maps:
            gradient = found.weight.grad
            slopes = found.each(whole(torch.zeros_like(found.weight) if gradient is None else gradient).float())
            held = found.each(whole(found.weight.detach()).float())
            bases = [torch.linalg.svd(slope, full_matrices=False).U[:, :count].contiguous() for slope in slopes]
            self._bases.append(bases)
            self._written.append([basis.T @ matrix for basis, matrix in zip(bases, held, strict=True)])

    def step_aside(self) -> None:
        """Take out of every map what has changed in the guarded directions."""
        for found, bases, written in zip(self._maps, self._bases, self._written, strict=True):
            found.rewrite(lambda now, basis, was: now - basis @ (basis.T @ now - was), bases, written)

    def state_dict(self) -> dict[str, Any]:
        return {"bases": self._bases, "written": self._written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        def placed(tensors: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
            return [
                [tensor.to(found.weight.device) for tensor in row]
                for found, row in zip(self._maps, tensors, strict=True)
            ]

        self._bases, self._written = placed(state["bases"]), placed(state["written"])


_ALL = FineTune(hazard="hazard_all")
_SETTLE = replace(_ALL, learning_rate=1e-3, benign_share=0.5, batch_size=32, schedule="warmup-cosine")

PRESETS = {
    # Small models, such as the testbed's.
    "sidestep-4-full-adamw-1e-3": Sidestep(tune=_ALL),
    "sidestep-16-full-adamw-1e-3": Sidestep(directions=16, tune=_ALL),
    "kick-aside-1e-2-settle-1e-3": Sidestep(kick_steps=4, tune=_SETTLE),
    # Models of billions of weights.
    "sidestep-16-full-adamw-2e-5-large": Sidestep(
        directions=16, max_steps=1000, tune=replace(_ALL, learning_rate=2e-5, batch_size=32)
    ),
    "kick-aside-2e-4-settle-2e-5-large": Sidestep(
        directions=16, kick_steps=16, kick_learning_rate=2e-4, max_steps=1000, tune=replace(_SETTLE, learning_rate=2e-5)
    ),
}

FAMILIES = {
    "sidestep": Family(
        PRESETS["sidestep-4-full-adamw-1e-3"],
        {
            "directions": Choice((1, 4, 16, 48)),
            "tune.learning_rate": Log(1e-4, 1e-2),
            "tune.benign_share": Choice((0.0, 0.5)),
            "max_steps": Choice((80, 160, 320)),
        },
    ),
    "kick-settle": Family(
        PRESETS["kick-aside-1e-2-settle-1e-3"],
        {
            "directions": Choice((1, 4, 16)),
            "kick_steps": Choice((2, 4, 8)),
            "kick_learning_rate": Log(2e-3, 5e-2),
            "tune.learning_rate": Log(1e-4, 1e-2),
            "max_steps": Choice((80, 160, 320)),
        },
    ),
}
