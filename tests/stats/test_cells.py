from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.records import CellResult, Record
from holdfast.stats.cells import (
    ABILITY_BOUND,
    CellSummary,
    ability_scale,
    hazard_scale,
    keeps_ability,
    standard_error,
    summarise_cell,
)
from tests.report.synthetic import cell, record


def summarised(result: CellResult) -> CellSummary:
    results = [result]
    return summarise_cell(result, hazard_scale(results), ability_scale(results))


def test_last_and_best_leave_out_the_untouched_model() -> None:
    summary = summarised(cell(hazard={0: 0.9, 8: 0.6, 64: 0.4}, ability={0: 0.95, 64: 0.9}))
    assert summary.before is not None
    assert summary.last is not None
    assert summary.best is not None
    assert (summary.before.value, summary.last.value, summary.best.value) == (0.9, 0.4, 0.6)
    assert summary.best.step == 8
    assert (summary.ability_before, summary.ability_after, summary.keeps_ability) == (0.95, 0.9, True)


def test_of_a_loss_the_best_is_the_lowest() -> None:
    made = cell()
    records = [record("hazard-loss", step, value) for step, value in {0: 3.0, 8: 1.5, 64: 2.0}.items()]
    summary = summarised(replace(made, records=records))
    assert summary.best is not None
    assert summary.best.value == 1.5
    assert summary.keeps_ability is None
    assert summary.ability_after is None


def test_hazard_questions_come_before_a_hazard_loss_and_other_questions() -> None:
    made = replace(cell(), records=[record("zeta", 0, 0.3), record("hazard-loss", 0, 2.0)])
    assert hazard_scale([made]).evaluations == ("zeta",)
    assert hazard_scale([replace(made, records=[*made.records, record("hazard", 0, 0.4)])]).evaluations == ("hazard",)
    assert hazard_scale([cell()]).evaluations == ()


def test_headline_ability_is_the_set_outside_retain_else_the_mean_over_complete_sets() -> None:
    def ability(name: str, step: int, value: float, *, complete: bool = True) -> Record:
        return record(name, step, value, measures="ability", complete=complete)

    sets = [ability("a", 0, 1.0), ability("a", 8, 0.9), ability("b", 0, 0.8), ability("b", 8, 0.5)]
    sampled = [ability("c", 0, 1.0), ability("c", 8, 0.0, complete=False)]
    plain = summarised(replace(cell(), records=[*sets, *sampled]))
    assert plain.ability_before == pytest.approx((1.0 + 0.8) / 2)
    assert plain.ability_after == pytest.approx((0.9 + 0.5) / 2)
    headline = [ability("benign_outside_retain", 0, 0.9), ability("benign_outside_retain", 8, 0.2)]
    assert summarised(replace(cell(), records=[*sets, *headline])).ability_after == 0.2


@pytest.mark.parametrize(("after", "kept"), [(0.9, True), (0.9 - ABILITY_BOUND, True), (0.69, False), (None, None)])
def test_the_ability_bound_is_inclusive(after: float | None, kept: bool | None) -> None:
    scale = ability_scale([cell(ability={0: 0.9})])
    assert keeps_ability(0.9, after, scale) is kept


def test_flags_say_what_is_wrong() -> None:
    curves = {"hazard": {0: 0.3, 8: 0.3}, "ability": {0: 0.95, 8: 0.55}}
    fine = cell(hazard={0: 0.3, 8: 0.3}, ability={0: 0.95, 8: 0.9})
    assert summarised(fine).flags == ()
    assert summarised(cell(**curves)).flags == ("ability destroyed",)  # under (0.25 + 0.95) / 2
    flat = replace(fine, first_loss=2.0, last_loss=2.0, seen_in_training=True)
    assert summarised(flat).flags == ("loss never fell", "seen in training")
    assert summarised(replace(fine, first_loss=None)).flags == ()
    assert summarised(replace(fine, status="diverged")).flags == ("diverged",)
    failed = replace(cell(), status="failed", reason="out of memory", records=[], first_loss=None)
    assert summarised(failed).flags == ("failed",)


@given(st.integers(1, 1000), st.data())
def test_no_accuracy_is_certain(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    error = standard_error(record("hazard", 0, right / n, n=n, stderr=None))
    share = (right + 1) / (n + 2)
    assert error == pytest.approx((share * (1 - share) / (n + 2)) ** 0.5)
    assert error > 0
    assert standard_error(record("hazard", 0, right / n, n=n, stderr=0.6)) == 0.6  # its own, where that is larger
