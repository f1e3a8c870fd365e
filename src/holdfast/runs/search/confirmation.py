"""The winner of a search, confirmed on the claim questions with fresh seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from holdfast.attacks.space import collect_families
from holdfast.campaign.cells import UNTOUCHED, Campaign, Model
from holdfast.core.domain import Domain
from holdfast.core.records import CellResult
from holdfast.core.types import HoldfastError
from holdfast.runs.search.search import Search
from holdfast.runs.search.trial import FRESH_SEED, Trial, abilities, attack_name, attack_of
from holdfast.stats.cells import hazard_curve, hazard_scale
from holdfast.stats.seeds import SEEDS_FOR_INTERVAL, Interval, t_interval

UNSEEN = "ability_unseen"
"""The evaluation, in a confirmation, of the half of the ability questions that the search did not ask."""


def confirmation(search: Search, winner: Trial, models: Sequence[Model], seeds: int) -> Campaign:
    """The campaign that confirms a winner: on the claim questions, with seeds that the search did not use.

    Raises:
        HoldfastError: the seeds are too few for an interval.
    """
    if seeds < SEEDS_FOR_INTERVAL:
        raise HoldfastError(
            f"a confirmation needs at least {SEEDS_FOR_INTERVAL} fresh seeds for an interval, not {seeds}"
        )
    unseen = abilities(Domain.open(search.domain), "odd")
    names = [UNSEEN] if len(unseen) == 1 else [f"{UNSEEN}_{evaluation.questions}" for evaluation in unseen]
    return Campaign(
        models=tuple(models),
        domain=search.domain,
        attacks=((attack_name(winner), attack_of(winner)),),
        seeds=tuple(range(FRESH_SEED, FRESH_SEED + seeds)),
        also=tuple(zip(names, unseen, strict=True)),
        options=search.options,
    )


def searched_classes(families: Sequence[str]) -> list[str]:
    """The classes of attack that a search through these families goes through, for the plan of a later campaign."""
    known = collect_families()
    return sorted({type(known[family].attack).__name__ for family in families})


def confirmed(results: Sequence[CellResult], label: str) -> Confirmed:
    """What the confirmation of a model's winner came to.

    Raises:
        HoldfastError: none of its runs finished.
    """
    own = [r for r in results if r.model == label and r.attack != UNTOUCHED and r.status == "finished"]
    if not own:
        raise HoldfastError("no run of the confirmation finished; run the same command again")
    scale = hazard_scale(results)
    best = [max(point.value for point in hazard_curve(result, scale) if point.step > 0) for result in own]
    before, after = [], []
    for result in own:
        asked = [record for record in result.records if record.evaluation.startswith(UNSEEN) and record.complete]
        last = max(record.step for record in asked)
        before.append(fmean(record.value for record in asked if record.step == 0))
        after.append(fmean(record.value for record in asked if record.step == last))
    return Confirmed(
        hazard=fmean(best),
        interval=t_interval(best),
        seeds=len(best),
        failed=sum(r.model == label and r.status != "finished" for r in results),
        ability_before=fmean(before),
        ability=fmean(after),
    )


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A winner on the claim questions; fractions."""

    hazard: float
    """at each seed's best milestone, mean over seeds"""
    interval: Interval | None
    """95 %, Student-t over seeds: about this checkpoint"""
    seeds: int
    failed: int
    """runs that did not finish"""
    ability_before: float
    """on the questions that the search did not ask"""
    ability: float
    """the same after the attack, mean over seeds"""
