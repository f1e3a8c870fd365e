"""Mean, spread and interval over seeds. Seeds are the clusters: questions within a seed are no independent runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, variance

from holdfast.stats.cells import Point

SEEDS_FOR_INTERVAL = 5
"""below this, an interval over seeds covers far less than it says"""
ALPHA = 0.05
"""of every interval, both sides together; a bound on one side errs in half as many"""
NOISE = 2.0
"""combined standard errors within which no difference is claimed"""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean with what is known of its error: over runs, which differ, and over questions, which all runs share."""

    mean: float
    seed_variance: float
    """of the mean, from runs; 0 where the attack draws nothing"""
    question_variance: float
    """of the mean, from questions"""
    seeds: int
    draws: bool = True
    """False: one run is all that there is to see, so there is no spread to estimate"""

    @property
    def stderr(self) -> float:
        """Standard error, runs and questions together."""
        return sqrt(self.seed_variance + self.question_variance)

    @property
    def enough(self) -> bool:
        """Whether there are runs enough for an interval."""
        return not self.draws or self.seeds >= SEEDS_FOR_INTERVAL

    @property
    def freedom(self) -> float:
        """Degrees of freedom of `stderr`, after Welch (1938) and Satterthwaite (1946); the questions' own are taken as many.

        Their formula squares the share of the runs' variance. That takes the variance as known: where five runs happen to agree,
        the error comes out too small and its freedom too large at once, and a bound corrected for 8 attacks fails twice as often
        as it says, one for 32 nearly four times. Unsquared they fail 1.3 and 1.8 times as often, and an interval of 95 % covers
        it; it is wider by 8 % at most.
        """
        if not self.draws or self.seed_variance == 0.0:
            return inf
        return (self.seeds - 1) * (1 + self.question_variance / self.seed_variance)

    def half_width(self, alpha: float = ALPHA) -> float:
        """Half of the Student-t interval that errs in `alpha`, both sides together."""
        from scipy.special import ndtri, stdtrit

        quantile = ndtri(1 - alpha / 2) if self.freedom == inf else stdtrit(self.freedom, 1 - alpha / 2)
        return float(quantile) * self.stderr

    def interval(self, alpha: float = ALPHA) -> Interval | None:
        """The interval; None with too few runs."""
        if not self.enough:
            return None
        half = self.half_width(alpha)
        return Interval(low=self.mean - half, high=self.mean + half)

    def exceeds_zero(self) -> float:
        """The probability of a mean this large or larger where the truth is zero; 1 with too few runs."""
        if not self.enough:
            return 1.0
        if self.stderr == 0.0:
            return 0.0 if self.mean > 0 else 1.0
        from scipy.special import ndtr, stdtr

        statistic = -self.mean / self.stderr
        return float(ndtr(statistic) if self.freedom == inf else stdtr(self.freedom, statistic))


def spread(values: Sequence[float], question_variance: float, *, draws: bool = True) -> Spread:
    """One value a run, to their mean and its error."""
    several = draws and len(values) > 1
    return Spread(
        mean=fmean(values),
        seed_variance=variance(values) / len(values) if several else 0.0,
        question_variance=question_variance,
        seeds=len(values),
        draws=draws,
    )


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
    """Student-t over seed means, with the questions' error; None with too few seeds"""

    @property
    def stderr(self) -> float:
        """Standard error, questions and seeds combined."""
        return sqrt(self.question_stderr**2 + self.seed_stderr**2)


def over_seeds(points: Sequence[Point], *, draws: bool = True) -> Estimate | None:
    """One point a seed, to their mean; None without any.

    All seeds answer the same questions, so the questions' standard error does not shrink with more seeds. An attack that draws
    nothing has one run, whose only error is the questions'.
    """
    if not points:
        return None
    values = [point.value for point in points]
    error = fmean(point.stderr for point in points)
    found = spread(values, error**2, draws=draws)
    return Estimate(
        mean=found.mean,
        low=min(values),
        high=max(values),
        question_stderr=error,
        seed_stderr=sqrt(found.seed_variance),
        seeds=len(values),
        interval=found.interval(),
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


def t_interval(values: Sequence[float], question_stderr: float = 0.0) -> Interval | None:
    """Student-t 95 % interval of the mean, from `SEEDS_FOR_INTERVAL` values on; None below."""
    if len(values) < SEEDS_FOR_INTERVAL:
        return None
    return spread(values, question_stderr**2).interval()


def within_noise(difference: float, *stderrs: float) -> bool:
    """Whether a difference is no larger than `NOISE` combined standard errors."""
    return abs(difference) <= NOISE * sqrt(sum(stderr**2 for stderr in stderrs))
