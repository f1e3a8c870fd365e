"""Suites and presets by size of model, and the warning where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from holdfast.cli.fit import warn_of_size
from holdfast.core.presets import collect
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.audit import Audit
from holdfast.runs.fitting import QUICK, attack_for, misfits, sizes_of_attack, sizes_of_safeguard, suite_for
from holdfast.runs.suites import SUITES


def said(capsys: pytest.CaptureFixture[str], kind: str, *labels: str) -> str:
    warn_of_size(Console(width=500), "models/chat", kind, labels)
    return capsys.readouterr().out


def test_every_suite_fits_its_own_size_and_every_size_has_one() -> None:
    for suite in SUITES.values():
        assert misfits(suite.size, ((name, sizes_of_attack(name)) for name in suite.attacks)) == {}
    assert {SUITES[name].size for name in QUICK.values()} == set(QUICK) == {"tiny", "small", "large"}


@pytest.mark.parametrize("size", QUICK)
def test_what_comes_next_fits_the_model(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "size", size)
    assert SUITES[suite_for("m")].size == size
    assert size in sizes_of_attack(attack_for("m"))
    assert Audit(model="m", undefended="u", domain="d").suite == QUICK[size]  # type: ignore[index]


def test_a_model_that_cannot_be_looked_at_is_taken_for_the_testbeds(tmp_path: Path) -> None:
    assert suite_for(str(tmp_path / "none")) == "quick-2"


def test_names_say_which_models_a_safeguard_is_for() -> None:
    presets = collect("holdfast.safeguards")
    assert sizes_of_safeguard("tar-paper-bio+outer_steps=750") == {"large"}
    assert {name for name in presets if sizes_of_safeguard(name) == {"small"}} == {
        name for name in presets if name.endswith("-small")
    }
    assert sizes_of_safeguard("rmu") == {"tiny"}


def test_a_preset_for_other_models_is_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "size", "large")
    warning = said(capsys, "attacks", "full-adamw-1e-3+max_steps=5", "full-adamw-2e-5")
    assert warning == (
        "Warning: full-adamw-1e-3+max_steps=5 is for models with less than 20 million weights, and models/chat has "
        "billions of weights; the suite quick-large fits.\n"
    )
    assert "names that end in -large" in said(capsys, "safeguards", "random-mapping", "tar-paper-bio")
    assert said(capsys, "safeguards", "random-mapping-large", "tar-paper-bio") == ""
    assert said(capsys, "attacks", "an-attack-from-outside") == ""
    monkeypatch.setattr(Checkpoint, "size", "tiny")
    assert said(capsys, "attacks", *SUITES["quick-2"].attacks) == ""
    assert " and 5 more are for" in said(capsys, "attacks", *SUITES["quick-large"].attacks)
