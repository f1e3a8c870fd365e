"""Adds noise to the weights, then fine-tunes, with restarts, to leave the basin that a safeguard has built.

    W <- W + scale * std(W) * N(0, 1)       before update 0 and, `restarts` times more, along the run at even distances

The authors of TAR name weight noise among the extra attacks of their rebuttal (arXiv 2408.00761). The scale, the number of
restarts and their places are ours. A restart adds fresh noise to the current weights, and the optimizer keeps its state. A
return to the defended weights would discard what the attack has learned, and would publish the last of several short runs
instead of one long run. Noise and the optimizer's next step count as one update.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.core.disguise import Disguise
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class NoiseRestart(Attack):
    """Fine-tuning with noise on the weights before the first update, and again at even distances."""

    family = "weight noise with fine-tuning"
    control = "refusals that hang on one direction of the hidden states"

    scale: float = 0.1
    """standard deviation of the noise, in standard deviations of each weight tensor"""
    restarts: int = 3
    """number of times that noise is added again after the first time"""
    tune: FineTune = FineTune()
    """the fine-tuning; the max_steps of this attack replaces the max_steps of `tune`"""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise HoldfastError(f"max_steps must be at least 1, not {self.max_steps}")
        if not self.scale > 0:
            raise HoldfastError(f"scale must be above 0, not {self.scale}")
        if self.restarts < 0:
            raise HoldfastError(f"restarts must not be below 0, not {self.restarts}")

    def prepare(self, model: PreTrainedModel) -> None:
        """Insert the fine-tuning's fresh low-rank layers, if any; these are shaken too."""
        self.tune.prepare(model)

    @property
    def benign_steps(self) -> int:
        return self._tuning.benign_steps

    @property
    def disguise(self) -> Disguise | None:
        return self.tune.disguise

    @property
    def rows_per_step(self) -> int:
        return self.tune.rows_per_step

    def reads(self) -> tuple[str, ...]:
        return self.tune.reads()

    @property
    def shaken(self) -> tuple[int, ...]:
        """The updates, counted from 0, that follow noise."""
        return tuple(sorted({i * self.max_steps // (self.restarts + 1) for i in range(self.restarts + 1)}))

    @property
    def _tuning(self) -> FineTune:
        return replace(self.tune, max_steps=self.max_steps)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        tuning = self._tuning.steps(model, data, run)
        for step in range(run.start, self.max_steps):
            if step in self.shaken:
                self._shake(model, run.generator)
            yield next(tuning)

    def _shake(self, model: PreTrainedModel, generator: torch.Generator) -> None:
        import torch

        from holdfast.engine.sharded import reshard, rewrite

        def shaken(weight: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            return weight + self.scale * weight.std(correction=0) * noise

        reshard(model)
        for weight in model.parameters():
            rewrite(weight, shaken)


PRESETS = {
    # Small models, such as the testbed's.
    "noise-10-then-full-adamw-1e-3": NoiseRestart(),
    "noise-30-once-then-full-adamw-1e-3": NoiseRestart(scale=0.3, restarts=0),
    # Models of billions of weights.
    "noise-5-then-full-adamw-2e-5-large": NoiseRestart(
        scale=0.05, max_steps=1000, tune=FineTune(learning_rate=2e-5, batch_size=32)
    ),
}

FAMILIES = {
    "noise": Family(
        NoiseRestart(),
        {
            "scale": Log(0.01, 0.5),
            "restarts": Choice((0, 1, 3)),
            "tune.learning_rate": Log(1e-4, 1e-2),
            "tune.hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
        },
    ),
}
