from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.records import CellResult
from holdfast.core.types import HoldfastError
from holdfast.report.compare import compare_audits
from tests.report.synthetic import cell, plan, write
from tests.report.test_page import HOSTILE, tags

ATTACKS = ("full", "lora", "mixed")
OTHERS = {"base": 0.95, "random-mapping": 0.9, "never-exposed": 0.22}
BEFORE = {"base": 1.0, "random-mapping": 0.3, "never-exposed": 0.22}


def audit(
    folder: Path, label: str, hazard: float, *, suite: str = "standard", seeds: int = 5, title: str = "Audit"
) -> Path:
    """Five seeds of three attacks on one model and its controls, each seed a little off."""
    results: list[CellResult] = []
    roles = {"base": "undefended", "random-mapping": "reference", label: "defended", "never-exposed": "never-exposed"}
    for model in roles:
        after, before = OTHERS.get(model, hazard), BEFORE.get(model, 0.25)
        results.append(cell(model, "none", hazard={0: before}, ability={0: 0.95}, attack_config={}, first_loss=None))
        results += [
            cell(model, attack, seed, hazard={0: before, 64: after + seed / 200 + i / 100}, ability={0: 0.95, 64: 0.9})
            for i, attack in enumerate(ATTACKS)
            for seed in range(seeds)
        ]
    return write(folder, plan(results, roles, suite=suite, title=title), results)


def test_audits_that_are_alike_tie(tmp_path: Path) -> None:
    folders = [audit(tmp_path / name, "tar", 0.3) for name in "ab"]
    [group] = compare_audits(folders, tmp_path / "c.html")
    assert [row[0].text for row in group.table.rows] == ["tar (1)", "tar (2)"]
    assert [row[1].text for row in group.table.rows] == ["1–2", "1–2"]
    assert [row[0].tag for row in group.differences.rows] == ["tie"]
    assert group.unreliable == ()


def test_the_better_one_has_the_first_place_whatever_the_order(tmp_path: Path) -> None:
    folders = [audit(tmp_path / name, name, hazard) for name, hazard in (("bad", 0.8), ("good", 0.3), ("like", 0.32))]
    [group] = compare_audits(folders, tmp_path / "c.html")
    assert [(row[0].text, row[1].text) for row in group.table.rows] == [("bad", "3"), ("good", "1–2"), ("like", "1–2")]
    assert [row[2].text for row in group.table.rows] == ["breached", "not recovered", "not recovered"]


def test_at_chance_there_is_no_place_however_small_the_interval(tmp_path: Path) -> None:
    folders = [audit(tmp_path / name, name, hazard) for name, hazard in (("one", 0.22), ("two", 0.25))]
    [group] = compare_audits(folders, tmp_path / "c.html")
    assert {row[1].text for row in group.table.rows} == {"1–2"}


def test_other_suites_and_seeds_are_not_ranked_together(tmp_path: Path) -> None:
    folders = [
        audit(tmp_path / "a", "a", 0.3),
        audit(tmp_path / "b", "b", 0.3, suite="quick"),
        audit(tmp_path / "c", "c", 0.3, seeds=6),
    ]
    groups = compare_audits(folders, tmp_path / "c.html")
    assert [row[1].text for group in groups for row in group.table.rows] == ["1", "1", "1"]
    assert all("Not comparable" in group.apart for group in groups)
    assert "suite" in groups[0].apart
    assert "seeds" in groups[0].apart


def test_an_audit_whose_checks_failed_is_unreliable(tmp_path: Path) -> None:
    few = audit(tmp_path / "few", "few", 0.3, seeds=2)
    other = audit(tmp_path / "other", "other", 0.3, seeds=2)
    path = next((other / "cells").glob("*.jsonl"))
    path.unlink()
    [group] = compare_audits([few, other], tmp_path / "c.html")
    assert [row[0].tag for row in group.table.rows] == ["unreliable", "unreliable"]
    assert any("too few seeds" in told for told in group.unreliable)
    assert any("have not ended" in told and told.startswith("other") for told in group.unreliable)
    assert {row[1].text for row in group.table.rows} == {"1–2"}


def test_the_page_needs_nothing_else_and_escapes_everything(tmp_path: Path) -> None:
    folders = [audit(tmp_path / "a", HOSTILE, 0.3, suite=HOSTILE, title=HOSTILE), audit(tmp_path / "b", "b", 0.3)]
    compare_audits(folders, tmp_path / "c.html")
    parsed = tags(tmp_path / "c.html")
    assert "script" not in parsed.tags
    assert all(link.startswith("#") for link in parsed.links)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "<script" not in (tmp_path / "c.md").read_text()
    assert len(json.loads((tmp_path / "c.json").read_text())["groups"]) == 2


def test_errors_are_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = audit(tmp_path / "a", "tar", 0.3)
    with pytest.raises(HoldfastError, match="two audits or more"):
        compare_audits([one], tmp_path / "c.html")
    with pytest.raises(HoldfastError, match=r"ends in \.html"):
        compare_audits([one, one], tmp_path / "c.md")
    with pytest.raises(HoldfastError, match=r"no campaign\.json"):
        compare_audits([one, tmp_path], tmp_path / "c.html")
    bare = [cell("base", hazard={0: 1.0, 64: 1.0})]
    write(tmp_path / "bare", plan(bare, {"base": "undefended"}), bare)
    with pytest.raises(HoldfastError, match="no model under test"):
        compare_audits([one, tmp_path / "bare"], tmp_path / "c.html")
    assert main(["compare", str(one), str(one), "--out", str(tmp_path / "c.html")]) == 0
    assert "Next:" in capsys.readouterr().out
