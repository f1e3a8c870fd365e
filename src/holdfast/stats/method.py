"""Claims about a method, which are not claims about a checkpoint: worlds, safeguard seeds and attack seeds, nested.

About one checkpoint only the attack's seed varies. About a method the trained models vary too, and between them lies the larger
spread. Attack seeds are averaged within a trained model, trained models within a world, and the worlds' means are the sample:
in a balanced design their variance holds the three components in the right shares (nested analysis of variance), so that
Student-t over worlds needs no model of them. Questions are each world's own, so their error is in that spread already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from holdfast.stats.seeds import ALPHA, Interval, Spread, spread

WORLDS_FOR_INTERVAL = 3
"""below this nothing is said of a method; with three the Student-t quantile is 4.3"""


@dataclass(frozen=True, kw_only=True)
class MethodClaim:
    """One figure of a method, such as hazard after its worst attack, over worlds and trained models."""

    mean: float
    low: float
    """the least trained model"""
    high: float
    """the greatest"""
    interval: Interval | None
    """95 %, Student-t over worlds; None below `WORLDS_FOR_INTERVAL`"""
    worlds: int
    models: int
    """trained models in all"""
    between_models: float
    """standard deviation between trained models of one world; 0 with one a world"""
    between_attacks: float
    """standard deviation between attack seeds on one trained model; 0 with one"""


def method_claim(values: Mapping[int, Mapping[int, Sequence[float]]]) -> MethodClaim:
    """From world -> safeguard seed -> one value an attack seed, alike many everywhere.

    Raises:
        ValueError: it is empty, or not balanced.
    """
    shapes = {tuple(len(runs) for runs in models.values()) for models in values.values()}
    if len(shapes) != 1 or len(set(next(iter(shapes)))) != 1:
        raise ValueError("worlds, safeguard seeds and attack seeds must be balanced")
    models = [[fmean(runs) for runs in held.values()] for held in values.values()]
    over = _worlds(models)
    runs = [runs for held in values.values() for runs in held.values()]
    trained = [mean for held in models for mean in held]
    return MethodClaim(
        mean=over.mean,
        low=min(trained),
        high=max(trained),
        interval=_interval(over),
        worlds=len(models),
        models=len(trained),
        between_models=_pooled(models),
        between_attacks=_pooled(runs),
    )


def difference(
    method: Mapping[int, Mapping[int, Sequence[float]]], other: Mapping[int, Mapping[int, Sequence[float]]]
) -> MethodClaim:
    """The claim about one method minus another, paired in everything that they share: worlds, safeguard and attack seeds."""
    paired = {
        world: {
            seed: [a - b for a, b in zip(runs, other[world][seed], strict=True)]
            for seed, runs in held.items()
            if seed in other[world]
        }
        for world, held in method.items()
        if world in other
    }
    return method_claim(paired)


def _worlds(models: Sequence[Sequence[float]]) -> Spread:
    return spread([fmean(held) for held in models], 0.0)


def _interval(over: Spread) -> Interval | None:
    if over.seeds < WORLDS_FOR_INTERVAL:
        return None
    half = over.half_width(ALPHA)
    return Interval(low=over.mean - half, high=over.mean + half)


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation within groups, pooled over groups of one size."""
    return fmean(variance(group) for group in groups) ** 0.5 if len(groups[0]) > 1 else 0.0
