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

from holdfast.stats.seeds import ALPHA, Interval, Spread, partners, spread

WORLDS_FOR_INTERVAL = 3
"""below this nothing is said of a method; with three the Student-t quantile is 4.3"""


Nested = Mapping[int, Mapping[int, Mapping[int, float]]]
"""World -> safeguard seed -> attack seed -> a figure."""


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


def method_claim(values: Nested) -> MethodClaim:
    """The claim about a method from one figure of every run, in a balanced design.

    Raises:
        ValueError: `values` is empty or not balanced.
    """
    shapes = {tuple(len(runs) for runs in models.values()) for models in values.values()}
    if len(shapes) != 1 or len(set(next(iter(shapes)))) != 1:
        raise ValueError("worlds, safeguard seeds and attack seeds must be balanced")
    models = [[fmean(runs.values()) for runs in world.values()] for world in values.values()]
    over = _worlds(models)
    runs = [list(runs.values()) for world in values.values() for runs in world.values()]
    trained = [mean for world in models for mean in world]
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


def difference(method: Nested, other: Nested) -> MethodClaim:
    """The claim about one method minus another, over shared worlds and safeguard seeds; attack seeds follow `seeds.partners`."""
    paired: dict[int, dict[int, dict[int, float]]] = {}
    for world in method.keys() & other.keys():
        for seed in method[world].keys() & other[world].keys():
            runs, others = method[world][seed], other[world][seed]
            beside = partners(runs, others, fmean(others.values()))
            paired.setdefault(world, {})[seed] = {key: value - beside[key] for key, value in runs.items()}
    return method_claim(paired)


def _worlds(models: Sequence[Sequence[float]]) -> Spread:
    return spread([fmean(world) for world in models], 0.0)


def _interval(over: Spread) -> Interval | None:
    if over.seeds < WORLDS_FOR_INTERVAL:
        return None
    half = over.half_width(ALPHA)
    return Interval(low=over.mean - half, high=over.mean + half)


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation within groups, pooled over groups of one size."""
    return fmean(variance(group) for group in groups) ** 0.5 if len(groups[0]) > 1 else 0.0
