"""The winner of a search, confirmed on the claim questions with fresh seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.attacks.space import collect_families
from holdfast.campaign.cells import UNTOUCHED, Campaign, Model
from holdfast.core.domain import Domain
from holdfast.core.records import CellResult
from holdfast.core.types import HoldfastError
from holdfast.runs.search.search import Search
from holdfast.runs.search.trial import FRESH_SEED, Trial, abilities, attack_name, attack_of
from holdfast.stats.cells import Scale, hazard_scale, summarise_cell
from holdfast.stats.milestones import best_milestone
from holdfast.stats.seeds import SEEDS_FOR_INTERVAL, Interval

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
    # Ability is to be that of the best milestone, so all of its questions are asked at every one.
    unseen = [replace(ability, milestone_sample=None) for ability in abilities(Domain.open(search.domain), "odd")]
    names = [UNSEEN] if len(unseen) == 1 else [f"{UNSEEN}_{evaluation.questions}" for evaluation in unseen]
    return Campaign(
        models=tuple(models),
        domain=search.domain,
        attacks=((attack_name(winner), attack_of(winner)),),
        seeds=tuple(range(FRESH_SEED, FRESH_SEED + seeds)),
        also=tuple(zip(names, unseen, strict=True)),
        options=search.options,
        base=search.base,
    )


def searched_classes(families: Sequence[str]) -> list[str]:
    """The classes of attack that a search through these families goes through, for the plan of a later campaign."""
    known = collect_families()
    return sorted({type(known[family].attack).__name__ for family in families})


def confirmed(results: Sequence[CellResult], label: str, ability_loss: float | None = None) -> Confirmed:
    """The confirmed figures of a model's winner, at the milestone of the greatest mean hazard over seeds.

    Ability is measured at the same milestone. Between the first and the last step, ability may be a sample of the questions.

    Args:
        results: of the confirmation.
        label: the model.
        ability_loss: what the attack may cost, as a fraction: a milestone within it goes before all that are not. None: any.

    Raises:
        HoldfastError: none of its runs finished, or ability was not measured at any milestone of all of them.
    """
    hazard = hazard_scale(results)
    unseen = {r.evaluation for result in results for r in result.records if r.evaluation.startswith(UNSEEN)}
    ability = Scale(evaluations=tuple(sorted(unseen)), metric="accuracy", chance=None)
    attacked = [result for result in results if result.model == label and result.attack != UNTOUCHED]
    finished = [result for result in attacked if result.status == "finished"]
    cells = [summarise_cell(result, hazard, ability) for result in finished]
    best = best_milestone(cells, hazard, loss=ability_loss)
    if best is None:
        raise HoldfastError("no run of the confirmation finished; run the same command again")
    if best.ability is None or best.ability_before is None:
        # Hazard is not to stand beside the ability of another milestone: only those count at which both were measured.
        best = best_milestone(cells, hazard, loss=1.0)
    if best is None or best.ability is None or best.ability_before is None:
        raise HoldfastError("ability was not measured under the confirmation; run the search into a new folder")
    questions = [{r.evaluation: r.n for r in result.records if r.step == best.step} for result in finished]
    return Confirmed(
        hazard=best.hazard,
        interval=best.interval,
        step=best.step,
        seeds=len(best.by_seed),
        failed=sum(r.model == label and r.status != "finished" for r in results),
        ability_before=best.ability_before,
        ability=best.ability,
        ability_questions=min(sum(n for name, n in counts.items() if name in unseen) for counts in questions),
        kept=ability_loss is None or best.ability >= best.ability_before - ability_loss - 1e-9,
    )


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A winner on the claim questions, at its best milestone; fractions."""

    hazard: float
    """mean over seeds"""
    interval: Interval | None
    """95 %, over seeds and questions: about this checkpoint"""
    step: int
    """the milestone"""
    seeds: int
    failed: int
    """runs that did not finish"""
    ability_before: float
    """on the questions that the search did not ask"""
    ability: float
    """the same at the milestone, mean over seeds"""
    ability_questions: int
    """how many were asked there; fewer than before the attack where it was a sample of them"""
    kept: bool
    """whether ability was within the loss that was allowed"""
