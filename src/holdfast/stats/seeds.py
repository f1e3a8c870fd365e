"""Mean, spread and interval over seeds. Seeds are the clusters: questions within a seed are no independent runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, variance
from typing import TypeVar

from holdfast.stats.cells import Point

SEEDS_FOR_INTERVAL = 5
"""below this, an interval over seeds covers far less than it says"""
ALPHA = 0.05
"""of every interval, both sides together; a bound on one side errs in half as many"""
NOISE = 2.0
"""combined standard errors within which no difference is claimed"""
FARTHEST = 30.0
"""standard normal deviates beyond which no probability is worked out: it is under 1e-197"""

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean and its error: over runs, which differ, and over questions, which all runs share."""

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
        """Whether the number of runs allows an interval."""
        return not self.draws or self.seeds >= SEEDS_FOR_INTERVAL

    def half_width(self, alpha: float = ALPHA) -> float:
        """Half of the interval that errs in at most `alpha`, both sides together (Banerjee 1960).

        The runs' variance is estimated from a few runs, the questions' variance is known. Each has a quantile of its own:
        Student's t with n - 1 degrees of freedom, and the normal one. The square of the half-width is t² times the runs' variance
        plus z² times the questions'. The error is at most `alpha` whatever the true ratio of the variances, because the
        distribution function of chi-squared with one degree of freedom is concave. An approximation of the degrees of freedom
        (Welch, Satterthwaite) keeps no such promise far out, where a correction over many attacks needs it.
        """
        from scipy.special import ndtri, stdtrit

        normal = float(ndtri(1 - alpha / 2)) ** 2 * self.question_variance
        if not self.draws or self.seed_variance == 0.0:
            return sqrt(normal)
        return sqrt(float(stdtrit(self.seeds - 1, alpha / 2)) ** 2 * self.seed_variance + normal)

    def interval(self, alpha: float = ALPHA) -> Interval | None:
        """The interval; None with too few runs."""
        if not self.enough:
            return None
        half = self.half_width(alpha)
        return Interval(low=self.mean - half, high=self.mean + half)

    def exceeds_zero(self) -> float:
        """The probability of a mean this large or larger where the truth is zero; 1 with too few runs.

        It is the error on one side of the interval that ends at zero.
        """
        if not self.enough:
            return 1.0
        if self.stderr == 0.0:
            return 0.0 if self.mean > 0 else 1.0
        tail = self._tail()
        return tail if self.mean > 0 else 1 - tail

    def _tail(self) -> float:
        from scipy.optimize import brentq
        from scipy.special import ndtr, ndtri, stdtr, stdtrit

        distance, freedom = abs(self.mean) / self.stderr, self.seeds - 1
        if not self.draws or self.seed_variance == 0.0:
            return float(ndtr(-distance))
        # The least and the greatest tail that any mixture of the two quantiles has.
        near = min(-float(ndtri(stdtr(freedom, -distance))), FARTHEST)
        far = min(distance, FARTHEST)

        def beyond(normal: float) -> float:
            student = float(stdtrit(freedom, ndtr(-normal)))
            return student**2 * self.seed_variance + normal**2 * self.question_variance - self.mean**2

        if self.question_variance == 0.0 or beyond(near) >= 0:
            return float(ndtr(-near))
        return float(ndtr(-(far if beyond(far) <= 0 else brentq(beyond, near, far, xtol=1e-9))))


def spread(values: Sequence[float], question_variance: float, *, draws: bool = True) -> Spread:
    """The mean of values, one a run, and its error."""
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


def partners(seeds: Iterable[Key], others: Mapping[Key, float], mean: float) -> dict[Key, float]:
    """The values that one model's runs are compared with: the other model's runs of the same seeds, else its mean.

    A seed does the same to both models, such as one order of data. The seeds are paired where the other model has all of them:
    a pairing of some would leave out the rest.
    """
    wanted = list(seeds)
    shared = all(seed in others for seed in wanted)
    return {seed: others[seed] if shared else mean for seed in wanted}


def difference(
    values: Mapping[Key, float],
    others: Mapping[Key, float],
    other: Estimate,
    question_variance: float,
    *,
    weight: float = 1.0,
    draws: bool = True,
) -> Spread:
    """One model minus `weight` times another over seeds, paired by the rule of `partners`.

    Where the seeds are not paired, the other model's variance over seeds is added.

    Args:
        values: one a seed; at least one.
        others: the other model's, by seed; empty where it did not run under the same attack.
        other: its mean, and the error of that.
        question_variance: of the difference.
        weight: of the other model.
        draws: whether the attack's path depends on the seed.
    """
    beside = partners(values, others, other.mean)
    apart = spread([value - weight * beside[seed] for seed, value in values.items()], question_variance, draws=draws)
    if values.keys() <= others.keys():
        return apart
    added = (weight * other.seed_stderr) ** 2
    if not draws:
        return replace(apart, question_variance=apart.question_variance + added)
    return replace(apart, seed_variance=apart.seed_variance + added)


def over_seeds(points: Sequence[Point], *, draws: bool = True) -> Estimate | None:
    """The mean of points, one a seed; None without any point.

    All seeds answer the same questions, so the questions' standard error does not shrink with more seeds. An attack that draws
    nothing has one run, whose only error is the questions'.
    """
    if not points:
        return None
    values = [point.value for point in points]
    error = fmean(point.stderr for point in points)
    over = spread(values, error**2, draws=draws)
    return Estimate(
        mean=over.mean,
        low=min(values),
        high=max(values),
        question_stderr=error,
        seed_stderr=sqrt(over.seed_variance),
        seeds=len(values),
        interval=over.interval(),
    )


def certain(value: float) -> Estimate:
    """A value without an error, such as chance."""
    return Estimate(mean=value, low=value, high=value, question_stderr=0.0, seed_stderr=0.0, seeds=0, interval=None)


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
