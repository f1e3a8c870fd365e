"""The best milestone: one step for all seeds, hazard and ability of the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.records import CellResult
from holdfast.runs.search.confirmation import UNSEEN, confirmed
from holdfast.stats.cells import CellSummary, ability_scale, hazard_scale, summarise_cell
from holdfast.stats.milestones import best_milestone
from tests.report.synthetic import cell, record

HAZARDS = ({8: 0.4, 64: 0.3, 160: 0.9}, {8: 0.5, 64: 0.7, 160: 0.8})
ABILITIES = {0: 0.9, 8: 0.88, 64: 0.86, 160: 0.2}


def runs(abilities: dict[int, float] = ABILITIES) -> list[CellResult]:
    return [cell("tar", "full", seed, hazard={0: 0.25, **held}, ability=abilities) for seed, held in enumerate(HAZARDS)]


def summaries(results: list[CellResult]) -> list[CellSummary]:
    return [summarise_cell(result, hazard_scale(results), ability_scale(results)) for result in results]


def test_hazard_and_ability_are_those_of_one_step() -> None:
    scale = hazard_scale(runs())
    kept = best_milestone(summaries(runs()), scale, loss=0.05)
    assert kept is not None
    assert (kept.step, kept.hazard, kept.ability, kept.kept) == (64, pytest.approx(0.5), pytest.approx(0.86), True)
    assert kept.by_seed == {0: 0.3, 1: 0.7}
    most = best_milestone(summaries(runs()), scale, loss=None)
    assert most is not None
    assert (most.step, most.hazard, most.ability) == (160, pytest.approx(0.85), pytest.approx(0.2))


def test_where_no_milestone_keeps_ability_the_best_of_all_is_marked() -> None:
    ruin = {0: 0.9, 8: 0.3, 64: 0.3, 160: 0.2}
    found = best_milestone(summaries(runs(ruin)), hazard_scale(runs()), loss=0.05)
    assert found is not None
    assert (found.step, found.kept, found.ability) == (160, False, pytest.approx(0.2))
    assert best_milestone([], hazard_scale(runs()), loss=0.05) is None


def test_ability_of_some_runs_is_not_that_of_all() -> None:
    first, second = runs()
    some = [first, replace(second, records=[r for r in second.records if r.measures == "hazard" or r.step in (0, 160)])]
    found = best_milestone(summaries(some), hazard_scale(some), loss=0.05)
    assert found is not None
    assert (found.step, found.kept, found.ability) == (160, False, pytest.approx(0.2))


def confirmation(between: bool) -> list[CellResult]:
    """Two runs with ability on unseen questions: a sample of 32 between the first and the last step, or nothing there."""
    results = []
    for result in runs({}):
        records = list(result.records)
        for step, value in ABILITIES.items():
            whole = step in (0, 160)
            if whole or between:
                n = 150 if whole else 32
                records.append(record(UNSEEN, step, value, measures="ability", complete=whole, n=n))
        results.append(replace(result, records=records))
    return results


def test_a_confirmation_has_the_ability_of_its_best_milestone() -> None:
    within = confirmed(confirmation(True), "tar", 0.05)
    assert (within.step, within.hazard, within.ability) == (64, pytest.approx(0.5), pytest.approx(0.86))
    assert (within.ability_questions, within.kept, within.ability_before) == (32, True, pytest.approx(0.9))
    beyond = confirmed(confirmation(True), "tar")
    assert (beyond.step, beyond.ability, beyond.ability_questions) == (160, pytest.approx(0.2), 150)


def test_a_confirmation_without_abilities_on_the_way_says_so() -> None:
    found = confirmed(confirmation(False), "tar", 0.05)
    assert (found.step, found.hazard, found.ability, found.kept) == (
        160,
        pytest.approx(0.85),
        pytest.approx(0.2),
        False,
    )
