"""Suites: what they hold and what they say they take."""

from __future__ import annotations

from holdfast.core.presets import collect, pick
from holdfast.runs.suites import SUITES, Suite, called


def test_every_suite_names_presets_that_exist_and_none_twice() -> None:
    known = collect("holdfast.attacks")
    for suite in SUITES.values():
        assert set(suite.attacks) <= set(known)
        assert len(set(suite.attacks)) == len(suite.attacks)
        assert suite.about


def test_the_budget_is_counted_from_the_presets() -> None:
    suite = Suite(("full-adamw-1e-4", "full-adamw-3e-3", "full-adamw-1e-5-b32"), "")
    assert suite.budget == (
        f"3 attacks of up to 320 updates, {320 + 80 + 169} updates and about {320 * 16 + 80 * 16 + 169 * 32:,} rows in all"
    )


def test_a_suite_is_recorded_with_its_version_or_where_it_was_found() -> None:
    assert called("standard") == f"standard (version {SUITES['standard'].version})"
    assert called("runs/search") == "found by search in search"


def test_quick_2_is_quick_with_one_attack_rescaled() -> None:
    old, new = SUITES["quick"].attacks, SUITES["quick-2"].attacks
    [(before, after)] = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    one, other = vars(pick("holdfast.attacks", before)), vars(pick("holdfast.attacks", after))
    assert {name for name, value in one.items() if value != other[name]} == {"learning_rate"}


def test_the_standard_suite_has_an_attack_of_every_family() -> None:
    homes = {type(pick("holdfast.attacks", name)).__module__ for name in SUITES["standard"].attacks}
    assert homes == {type(preset).__module__ for preset in collect("holdfast.attacks").values()}
