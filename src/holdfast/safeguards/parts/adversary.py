"""The mix of adversaries that an outer loop trains against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """One entry of the mix: an attack, its weight in the mix, and the settings that are sampled for every trajectory."""

    attack: Attack = FineTune()
    """any attack; the safeguard's `inner_steps` replaces its `max_steps`"""
    weight: float = 1.0
    """the probability of this entry is proportional to this weight"""
    learning_rates: tuple[float, ...] = ()
    """learning rates to sample uniformly from; empty: the rate of the attack"""
    switch: tuple[float, float] | None = None
    """retain-then-forget: parameters of the Beta distribution that gives the share of benign steps before the hazardous steps;
    None: the share of the attack"""

    def __post_init__(self) -> None:
        if self.switch is not None and min(self.switch) <= 0:
            raise HoldfastError(f"the parameters of switch must be above 0, not {self.switch}")
        self.at_each_rate()  # or the attack refuses

    def at_each_rate(self) -> tuple[Attack, ...]:
        """The attack at each rate that may be sampled, with the mean share of benign steps first where a share is sampled."""
        settings: dict[str, Any] = {}
        if self.switch is not None:
            settings["benign_first"] = self.switch[0] / sum(self.switch)
        rates: list[dict[str, Any]] = [{"learning_rate": rate} for rate in self.learning_rates] or [{}]
        return tuple(self.attack.varied(**settings, **rate) for rate in rates)

    def sample(self, inner_steps: int, generator: torch.Generator) -> Attack:
        """The attack over `inner_steps` updates, with its rate and switch sampled."""
        import torch

        settings: dict[str, Any] = {}
        if self.learning_rates:
            index = int(torch.randint(len(self.learning_rates), (), generator=generator))
            settings["learning_rate"] = self.learning_rates[index]
        if self.switch is not None:
            first, second = torch._standard_gamma(torch.tensor(self.switch), generator=generator)
            settings["benign_first"] = float(first / (first + second))
        return self.attack.varied(max_steps=inner_steps, **settings)


def draw(adversaries: tuple[Adversary, ...], inner_steps: int, generator: torch.Generator) -> Attack:
    """Sample an entry of the mix by its weight, then its settings."""
    import torch

    weights = torch.tensor([adversary.weight for adversary in adversaries], dtype=torch.float64)
    entry = adversaries[int(torch.multinomial(weights, 1, generator=generator))]
    return entry.sample(inner_steps, generator)
