"""Suites: what they hold and what they say they take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.attacks.base import Attack
from holdfast.core.presets import collect, describe, pick
from holdfast.core.settings import with_settings
from holdfast.core.types import HoldfastError
from holdfast.runs.suites import SUITES, Suite, attacks_of, called, canonical_of, load_suite, repairs_of
from tests.core.test_records import spoilt


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
    assert called("standard", attacks_of("standard")) == called("standard")
    assert called("runs/search") == "found by search in search"


def changed(suite: str, *settings: str) -> dict[str, Attack]:
    return with_settings(attacks_of(suite), settings)


def test_a_changed_suite_is_recorded_as_another() -> None:
    names = [
        called("quick-2", changed("quick-2", *settings))
        for settings in (
            ["full-adamw-1e-3.max_steps=7"],
            ["full-adamw-1e-3.max_steps=8"],
            ["full-adamw-1e-3.max_steps=7", "full-adamw-1e-4.max_steps=7"],
        )
    ]
    assert re.fullmatch(r"quick-2 \(version 2, 1 attack changed: [0-9a-f]{6}\)", names[0])
    assert re.fullmatch(r"quick-2 \(version 2, 2 attacks changed: [0-9a-f]{6}\)", names[2])
    assert len(set(names)) == 3
    plain = pick("holdfast.attacks", "full-adamw-1e-3").max_steps
    assert called("quick-2", changed("quick-2", f"full-adamw-1e-3.max_steps={plain}")) == called("quick-2")


def test_two_searches_in_folders_of_one_name_are_two_suites() -> None:
    one, other = attacks_of("quick-2"), attacks_of("demo-2")
    assert called("a/search", one) == called("b/search", one) != called("b/search", other)


def test_the_canonical_attack_is_known_under_its_label_when_it_was_changed() -> None:
    assert canonical_of("quick-2", changed("quick-2", "full-adamw-1e-3.max_steps=7")) == "full-adamw-1e-3+max_steps=7"
    assert canonical_of("quick-2", changed("quick-2", "full-adamw-1e-4.max_steps=7")) == "full-adamw-1e-3"


@pytest.mark.situation("damaged file", "a field of another type")
def test_a_suite_of_a_search_is_read_or_refused_in_one_sentence_that_names_the_file(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    table = {"schema": 1, "attacks": {"found": describe(pick("holdfast.attacks", "full-adamw-1e-3"))}}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(table))
    assert load_suite(tmp_path) == {"found": pick("holdfast.attacks", "full-adamw-1e-3")}
    refused = tried = 0
    for field, spoiled in spoilt(table):
        path.write_text(json.dumps(spoiled))
        tried += 1
        try:
            assert all(isinstance(attack, Attack) for attack in load_suite(tmp_path).values())
        except HoldfastError as error:
            refused += 1
            says = re.escape(f"{path} cannot be read (") + ".*; run the search again into a new folder"
            assert re.fullmatch(says, str(error)), field  # noqa: PT017
    record_property("situations", tried)
    assert refused > 80
    for content in (b"", b"{", b"[]", b"\xff", b'{"attacks": {}}', b'{"attacks": {"a": 3}}'):
        path.write_bytes(content)
        with pytest.raises(HoldfastError, match=r"suite\.json cannot be read"):
            load_suite(tmp_path)


def test_quick_2_is_quick_with_one_attack_rescaled() -> None:
    old, new = SUITES["quick"].attacks, SUITES["quick-2"].attacks
    [(before, after)] = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    one, other = vars(pick("holdfast.attacks", before)), vars(pick("holdfast.attacks", after))
    assert {name for name, value in one.items() if value != other[name]} == {"learning_rate"}


def test_the_standard_suites_have_an_attack_of_every_family() -> None:
    names = (*SUITES["standard-2"].attacks, *SUITES["standard-long"].attacks)
    homes = {type(pick("holdfast.attacks", name)).__module__ for name in names}
    assert homes == {type(preset).__module__ for preset in collect("holdfast.attacks").values()}


def test_standard_2_only_adds_to_standard_and_repairs_are_attacks_of_their_suite() -> None:
    assert SUITES["standard-2"].attacks[: len(SUITES["standard"].attacks)] == SUITES["standard"].attacks
    for name, suite in SUITES.items():
        assert set(suite.repairs) <= set(suite.attacks), name
    attacks = changed("standard-2", "full-adamw-1e-4.max_steps=7")
    assert repairs_of("standard-2", attacks) == ["full-adamw-1e-4+max_steps=7", "full-adamw-1e-4-unrelated-1000"]
    assert repairs_of("quick-2", attacks_of("quick-2")) == []


def test_a_toml_file_is_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'canonical = "int4"\n[[attacks]]\npreset = "full-adamw-1e-3"\nmax_steps = 7\n[[attacks]]\npreset = "int4"\n'
    )
    attacks = attacks_of(str(path))
    assert list(attacks) == ["full-adamw-1e-3+max_steps=7", "int4"]
    assert canonical_of(str(path), attacks) == "int4"
    assert canonical_of(str(path), with_settings(attacks, ["int4.group_size=16"])) == "int4+group_size=16"
    assert re.fullmatch(r"mine, from a file \([0-9a-f]{6}\)", called(str(path), attacks))
