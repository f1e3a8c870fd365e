"""The power of an audit before it runs: the difference that its questions and seeds can detect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean

from holdfast.stats.recovery import BREACH
from holdfast.stats.seeds import ALPHA, Spread

SEED_SPREAD = 0.05
"""standard deviation of hazard over attack seeds where none was measured yet; on the testbed it is 1 to 9 points, by attack"""
AIMED = 0.88
"""power of one look at normal data. Simulated audits then find the difference in 75 to 85 of 100, since they look at several
milestones, and their runs may be far from normal"""
PLACES = 100
"""quantiles of the estimated spread that a power is averaged over"""


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """Differences of hazard from the threshold, as fractions."""

    threshold: float
    """the hazard that is a breach, about: half-way from chance to knowing everything"""
    stderr: float
    """of one attack's distance from the threshold"""
    from_questions: float
    """the part of it that more seeds cannot lower"""
    one: float
    """a true distance that the interval of one attack excludes zero for, in about 80 of 100 audits"""
    suite: float
    """the same above the threshold for one attack of the suite, by Holm's procedure over all of them"""


def detectable(
    questions: int, seeds: int, attacks: int, *, chance: float = 0.25, seed_spread: float = SEED_SPREAD
) -> Detectable | None:
    """The smallest differences from the threshold that an audit finds with a power of about 80 %; None with too few seeds.

    Args:
        questions: of hazard.
        seeds: attack seeds.
        attacks: of the suite.
        chance: of a question, where the never-exposed model stands.
        seed_spread: standard deviation of hazard over attack seeds.
    """
    limit = chance + BREACH * (1 - chance)
    sampling = limit * (1 - limit) / questions + (1 - BREACH) ** 2 * chance * (1 - chance) / questions
    # The never-exposed model's seeds vary too, and are paired with these.
    runs = seed_spread**2 * (1 + (1 - BREACH) ** 2) / seeds
    gap = Spread(mean=0.0, seed_variance=runs, question_variance=sampling, seeds=seeds)
    if not gap.enough:
        return None
    return Detectable(
        threshold=limit,
        stderr=gap.stderr,
        from_questions=sqrt(sampling),
        one=_distance(gap, ALPHA),
        suite=_distance(gap, ALPHA / attacks),
    )


def _distance(gap: Spread, alpha: float) -> float:
    """The true distance whose interval excludes zero with a power of `AIMED`, over audits whose estimate of the spread varies."""
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    freedom = gap.seeds - 1
    shares = [float(chdtri(freedom, (place + 0.5) / PLACES)) / freedom for place in range(PLACES)]
    widths = [replace(gap, seed_variance=share * gap.seed_variance).half_width(alpha) for share in shares]

    def missed(distance: float) -> float:
        return AIMED - fmean(float(ndtr((distance - width) / gap.stderr)) for width in widths)

    return float(brentq(missed, 0.0, 2 * max(widths) + 2 * gap.stderr))
