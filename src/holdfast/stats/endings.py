"""Where an attack stands when its budget ends: a curve that still climbs there has not been decided by it.

The rise is that of a straight line over the logarithm of steps, fitted seed by seed to the milestones from half of the budget
on. All milestones ask the same questions, so the spread over seeds is its error; where some asked a sample only, the questions'
errors are added. A curve climbs where the rise is above zero by Holm's procedure over a model's attacks, at 5 %: the check is a
warning, so it may rather be given once too often than be missed.

A longer run is foretold by going on with that line, since relearning curves are nearly straight over the logarithm of steps. The
forecast decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log2
from statistics import fmean

from holdfast.stats.cells import CellSummary, Point
from holdfast.stats.decision import holm
from holdfast.stats.figures import ANCHOR_ROLES, CampaignSummary
from holdfast.stats.milestones import at_step, shared_steps
from holdfast.stats.seeds import ALPHA, Spread, spread

FARTHEST = 100.0
"""times the budget; a line that needs more to reach the threshold is not called undecided for it"""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """One attack that trains, on one model, at the end of its budget."""

    model: str
    attack: str
    since: int
    """the milestone that the rise is counted from"""
    step: int
    """the last milestone"""
    hazard: float
    """there, mean over seeds"""
    rise: Spread
    """of hazard since then, along the line; the sign is turned for a loss, so that more is worse"""
    rising: int
    """seeds whose line rises"""
    climbs: bool
    decides: float | None
    """updates after which the line reaches the threshold; None: it does not, or hazard is there already"""

    @property
    def times(self) -> float | None:
        """`decides` over the budget."""
        return None if self.decides is None else self.decides / self.step

    @property
    def undecided(self) -> bool:
        """Whether the curve climbs towards a threshold within `FARTHEST` budgets."""
        return self.climbs and self.times is not None and self.times <= FARTHEST


def endings(summary: CampaignSummary) -> tuple[Ending, ...]:
    """Every attack that trains and has a milestone at half of its budget or earlier, on every model with a safeguard."""
    found: list[Ending] = []
    for model in (model for model in summary.models if model.role not in ANCHOR_ROLES):
        ends = [end for attack in summary.attacks if (end := _ending(summary, model.label, attack.name)) is not None]
        climbing = holm({end.attack: end.rise.exceeds_zero() for end in ends}, ALPHA)
        found += [_judged(end, end.attack in climbing, summary) for end in ends]
    return tuple(found)


def _ending(summary: CampaignSummary, label: str, attack: str) -> Ending | None:
    cells = [cell for cell in summary.cells if (cell.model, cell.attack) == (label, attack) and _whole(cell)]
    steps = shared_steps(cells)
    earlier = [step for step in steps if 2 * step <= steps[-1]]
    if not earlier:
        return None
    since, step = earlier[-1], steps[-1]
    stops = {at: at_step(cells, at) for at in steps if at >= since}
    after = stops[step]
    rises = [_fitted({at: points[seed] for at, points in stops.items()}) for seed in after]
    asked = {(point.complete, point.n) for points in stops.values() for point in points.values()}
    error = (
        0.0 if len(asked) == 1 else fmean(stops[since][seed].stderr ** 2 + after[seed].stderr ** 2 for seed in after)
    )
    return Ending(
        model=label,
        attack=attack,
        since=since,
        step=step,
        hazard=fmean(point.value for point in after.values()),
        rise=spread([summary.hazard.sign * rise for rise in rises], error, draws=cells[0].draws),
        rising=sum(summary.hazard.sign * rise > 0 for rise in rises),
        climbs=False,
        decides=None,
    )


def _fitted(points: Mapping[int, Point]) -> float:
    """The rise of the line of least squares over the logarithm of steps, from the first of them to the last."""
    places = [log2(step) for step in points]
    centre, middle = fmean(places), fmean(point.value for point in points.values())
    along = sum((place - centre) * (point.value - middle) for place, point in zip(places, points.values(), strict=True))
    return along / sum((place - centre) ** 2 for place in places) * (places[-1] - places[0])


def _whole(cell: CellSummary) -> bool:
    """Whether the run says something of the end of its budget."""
    return cell.counts and cell.trains and not cell.stopped


def _judged(end: Ending, climbs: bool, summary: CampaignSummary) -> Ending:
    pair = summary.pair(end.model, end.attack)
    left = None if pair is None or pair.threshold is None else summary.hazard.sign * (pair.threshold - end.hazard)
    decides = None
    if climbs and left is not None and left > 0:
        doublings = left * log2(end.step / end.since) / end.rise.mean
        decides = end.step * 2**doublings if doublings < 1000 else None
    return replace(end, climbs=climbs, decides=decides)
