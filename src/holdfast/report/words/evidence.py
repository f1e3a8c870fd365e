"""Sentences on how far the evidence goes: curves that still climb, families that were not blind, seeds that are too few."""

from __future__ import annotations

from holdfast.report.words.names import Names
from holdfast.report.words.numbers import amount, count, factor_of, points
from holdfast.stats.cells import Scale
from holdfast.stats.endings import Ending
from holdfast.stats.evidence import Blindness, Climbing, Evidence, FewSeeds
from holdfast.stats.seeds import SEEDS_FOR_INTERVAL

_MOST = 2
"""attacks of which a sentence gives the figures; the rest is counted"""


def sentence(check: Evidence, hazard: Scale, names: Names) -> str:
    """One check in words, whether it fires or not."""
    match check:
        case Climbing(endings=()):
            return f"No attack on {check.model} still climbs towards the threshold when its budget ends."
        case Climbing():
            shown = [f"{names(end.attack)} ({climb(end, hazard)})" for end in check.endings[:_MOST]]
            more = len(check.endings) - len(shown)
            rest = f"; {count(more, 'more attack')} also {'climbs' if more == 1 else 'climb'}" if more else ""
            first = check.endings[0].decides or 0.0
            longer = f" A run of about {updates(first)} would decide, were it to go on like that."
            return f"Hazard of {check.model} still climbs when the budget ends: {'; '.join(shown)}{rest}.{longer}"
        case Blindness(fires=True, families=()):
            return f"No attack on {check.model} was blind: its training or a search had met every one's family."
        case Blindness(fires=True):
            return (
                f"No family was blind for {check.model}: its training or a search for attacks had met "
                f"{'the only one' if len(check.families) == 1 else f'all {len(check.families)}'} of its attacks."
            )
        case Blindness():
            return f"{blind(check)} {'was' if len(check.blind) == 1 else 'were'} blind for {check.model}."
        case FewSeeds(fires=True):
            seeds = f"{count(check.seeds, 'seed')} {'is' if check.seeds == 1 else 'are'}"
            return f"{check.model}: {seeds} too few for an interval; {SEEDS_FOR_INTERVAL} are the fewest."
    return f"{check.model}: {count(check.seeds, 'seed')} allow an interval for every attack."


def climb(end: Ending, hazard: Scale) -> str:
    """How a curve ends: where it stands, its rise, and in how many seeds it rises."""
    signed = points(hazard.sign * end.rise.mean, hazard)
    unit = "" if hazard.metric == "nats" else " points"
    seeds = f", {end.rising} of {count(end.rise.seeds, 'seed')} rising" if end.rise.draws else ""
    return f"{amount(end.hazard, hazard)} at {count(end.step, 'update')}, {signed}{unit} since {end.since:,}{seeds}"


def updates(number: float) -> str:
    """A forecast of updates, to two digits."""
    return f"{float(f'{number:.1e}'):,.0f} updates"


def longer(end: Ending) -> str:
    """What longer budget the curve would need, or why none is named."""
    if end.decides is None or end.times is None:
        return "this line does not reach the threshold"
    return (
        f"on this line it reaches the threshold after about {updates(end.decides)} ({factor_of(end.times)} the budget)"
    )


def blind(check: Blindness) -> str:
    """How many families were blind."""
    return f"{len(check.blind)} of {count(len(check.families), 'family')}"
