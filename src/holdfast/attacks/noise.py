"""Weight noise, then fine-tuning: a random push out of the place that a safeguard was trained for, and once more on the way.

    W <- W + scale * std(W) * N(0, 1)    at the start of each of `restarts` equal parts of the run, then fine-tuning

TAR's authors tried weight noise among their extra attacks; only notes of it were seen, so the form and all constants are ours.
The fine-tuning's optimizer goes on across a restart.
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

    from holdfast.core.data import Data
    from holdfast.core.runtime import Run


@dataclass(frozen=True, kw_only=True)
class NoiseRestarts(Attack):
    """Fine-tuning that begins from noisy weights, and again from noisier ones after each part of its steps."""

    scale: float = 0.1
    """standard deviation of the noise, in standard deviations of each weight"""
    restarts: int = 1
    """how often noise is added, evenly over the run; the first time before the first step"""
    tune: FineTune = FineTune()
    """the fine-tuning; its max_steps gives way to max_steps"""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise HoldfastError(f"scale must be above 0, not {self.scale}")
        if self.restarts < 1:
            raise HoldfastError(f"restarts must be at least 1, not {self.restarts}")
        if self.tune.lora_rank:
            raise HoldfastError("noise is added to weights that are tuned themselves; set the rank of tune to 0")

    @property
    def benign_steps(self) -> int:
        return self._whole().benign_steps

    def reads(self) -> tuple[str, ...]:
        return self.tune.reads()

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        noisy = {part * self.max_steps // self.restarts for part in range(self.restarts)}
        tuning = self._whole().steps(model, data, run)
        for step in range(run.start, self.max_steps):
            if step in noisy:
                self._add(model, run, step)
            yield next(tuning)

    def _add(self, model: PreTrainedModel, run: Run, step: int) -> None:
        """Add the noise of a step, which depends on the seed and the step alone."""
        import torch

        from holdfast.core.sharded import rewrite, trainable

        generator = torch.Generator().manual_seed((run.seed * 1_000_003 + step) % 2**63)

        def change(weight: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(weight.shape, generator=generator).to(weight.device)
            # A scale of ones everywhere has no spread, and is left as it is.
            return weight + self.scale * weight.std(correction=0) * noise

        for weight in trainable(model):
            rewrite(weight, change)

    def _whole(self) -> FineTune:
        return replace(self.tune, max_steps=self.max_steps)


PRESETS = {
    # Small models, such as the testbed's.
    "noise-10-then-full-adamw-1e-3": NoiseRestarts(),
    "noise-10-restarts-4-full-adamw-1e-3": NoiseRestarts(restarts=4),
    # Models of billions of weights, at the rate of the paper's red team (arXiv 2408.00761).
    "noise-1-then-full-adamw-2e-5": NoiseRestarts(
        scale=0.01, max_steps=1000, tune=FineTune(learning_rate=2e-5, batch_size=32)
    ),
}

FAMILIES = {
    "noise": Family(
        NoiseRestarts(),
        {
            "scale": Log(0.01, 0.5),
            "restarts": Choice((1, 2, 4)),
            "tune.learning_rate": Log(1e-4, 1e-2),
            "tune.hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
        },
    ),
}
