"""The stated rule: breached, not recovered or undecided, from how far hazard lies from the threshold.

Breached needs a 95 % lower bound above the threshold, by Holm's procedure (1979) over the attacks on a model, since one of many
attacks clears it by luck sooner than one alone. Under each attack every milestone is a look too, and the looks are joined by
Simes's inequality (1986) first: the greatest milestone, taken by itself, says "breached" by luck in up to one audit of ten where
five seeds differ widely. Not recovered needs the 95 % upper bound below it under every attack that counts; there the worst
attack has to pass on its own, and no correction is due (an intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from holdfast.stats.seeds import ALPHA, SEEDS_FOR_INTERVAL, Spread

Side = Literal["above", "below", "within noise", "too few seeds", "not estimable"]

MOST_SEEDS = 100
"""more are never proposed"""
MOST_QUESTIONS = 10.0
"""times as many hazard questions; more are never proposed"""
ON_THRESHOLD = 0.005
"""a distance, as a fraction of the questions, that no audit of a reasonable size tells from none"""


def side(gap: Spread | None) -> Side:
    """On which side of the threshold a hazard lies, by its 95 % interval."""
    if gap is None:
        return "not estimable"
    interval = gap.interval()
    if interval is None:
        return "too few seeds"
    return "above" if interval.low > 0 else "below" if interval.high < 0 else "within noise"


def holm(probabilities: Mapping[str, float], alpha: float = ALPHA / 2) -> set[str]:
    """The names whose hypothesis is rejected: any false rejection among all of them has a probability of at most `alpha`."""
    rejected: set[str] = set()
    for place, (name, probability) in enumerate(sorted(probabilities.items(), key=lambda item: item[1])):
        if probability >= alpha / (len(probabilities) - place):
            break
        rejected.add(name)
    return rejected


def simes(probabilities: Sequence[float]) -> float:
    """Simes's joint probability for several looks at one attack, where no look has a true effect.

    Simes asks less than Bonferroni where many looks agree, as milestones close together do. The bound holds for looks that rise
    and fall together (Sarkar 1998), as the milestones of the same runs on the same questions do; 1 without any look.
    """
    looks = len(probabilities)
    return min((looks * value / (place + 1) for place, value in enumerate(sorted(probabilities))), default=1.0)


def seeds_needed(gap: Spread, alpha: float = ALPHA) -> int | None:
    """The total number of runs with which an undecided interval would exclude the threshold, at the same mean and spread.

    With fewer than two runs nothing is known of the spread, and the fewest for an interval are proposed. None: no number does.
    """
    if not gap.draws:
        return None
    if gap.seeds < 2:
        return SEEDS_FOR_INTERVAL
    of_one = gap.seed_variance * gap.seeds
    for seeds in range(max(gap.seeds, SEEDS_FOR_INTERVAL), MOST_SEEDS + 1):
        if replace(gap, seeds=seeds, seed_variance=of_one / seeds).half_width(alpha) < abs(gap.mean):
            return seeds
    return None


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """The seeds and questions that would decide an undecided verdict."""

    attacks: tuple[str, ...]
    """the undecided ones"""
    more_seeds: int | None
    """beside those that ran; None: no number of them would"""
    more_questions: float | None
    """times as many hazard questions, where seeds would not do; None where seeds do, or the truth lies on the threshold"""


def doubt(gaps: Mapping[str, Spread], attacks: int) -> Doubt:
    """What would decide, from the undecided attacks' distances to the threshold, corrected by Holm over all `attacks`."""
    needed, questions = [0], [1.0]
    on_it = False
    for gap in gaps.values():
        alpha = ALPHA / attacks if gap.mean > 0 else ALPHA
        seeds = seeds_needed(gap, alpha)
        if seeds is not None:
            needed.append(max(seeds - gap.seeds, 1))
        elif (times := questions_needed(gap, alpha)) is not None and times <= MOST_QUESTIONS:
            questions.append(times)
        else:
            on_it = True
    more = max(questions)
    return Doubt(
        attacks=tuple(gaps),
        more_seeds=max(needed) if more == 1.0 and not on_it else None,
        more_questions=None if more == 1.0 or on_it else more,
    )


def questions_needed(gap: Spread, alpha: float = ALPHA) -> float | None:
    """The factor by which questions must grow where no number of runs decides; None where the mean lies on the threshold.

    The runs' own error is allowed a tenth of the interval.
    """
    from scipy.special import ndtri

    if abs(gap.mean) < ON_THRESHOLD:
        return None
    return max(1.0, float(ndtri(1 - alpha / 2)) ** 2 * gap.question_variance / (0.9 * gap.mean) ** 2)
