"""Mean, spread and interval over seeds. Seeds are the clusters: questions within a seed are no independent runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from holdfast.stats.cells import Point

SEEDS_FOR_INTERVAL = 5
"""below this, an interval over seeds covers far less than it says"""
NOISE = 2.0
"""combined standard errors within which no difference is claimed"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    low: float
    """the smallest seed"""
    high: float
    """the largest seed"""
    question_stderr: float
    """of the questions, which all seeds share"""
    seed_stderr: float
    """of the seeds; 0 where there is one"""
    seeds: int
    interval: Interval | None
    """Student-t over seed means; None with too few seeds"""

    @property
    def stderr(self) -> float:
        """Standard error, questions and seeds combined."""
        return sqrt(self.question_stderr**2 + self.seed_stderr**2)


def over_seeds(points: Sequence[Point]) -> Estimate | None:
    """One point a seed, to their mean; None without any.

    All seeds answer the same questions, so the questions' standard error does not shrink with more seeds.
    """
    if not points:
        return None
    values = [point.value for point in points]
    return Estimate(
        mean=fmean(values),
        low=min(values),
        high=max(values),
        question_stderr=fmean(point.stderr for point in points),
        seed_stderr=stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0,
        seeds=len(values),
        interval=t_interval(values),
    )


def over_attacks(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of several attacks' estimates on one model; None without any.

    The attacks share the questions, whose standard error stays; their runs are independent: the seeds' error shrinks.
    """
    if not estimates:
        return None
    means = [estimate.mean for estimate in estimates]
    return Estimate(
        mean=fmean(means),
        low=min(means),
        high=max(means),
        question_stderr=sqrt(fmean(estimate.question_stderr**2 for estimate in estimates)),
        seed_stderr=sqrt(sum(estimate.seed_stderr**2 for estimate in estimates)) / len(estimates),
        seeds=min(estimate.seeds for estimate in estimates),
        interval=None,
    )


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student-t 95 % interval of the mean, from `SEEDS_FOR_INTERVAL` values on; None below."""
    if len(values) < SEEDS_FOR_INTERVAL:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    return Interval(low=fmean(values) - half, high=fmean(values) + half)


def within_noise(difference: float, *stderrs: float) -> bool:
    """Whether a difference is no larger than `NOISE` combined standard errors."""
    return abs(difference) <= NOISE * sqrt(sum(stderr**2 for stderr in stderrs))
