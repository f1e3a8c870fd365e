from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.stats.progress import progress, read_progress
from tests.report.synthetic import audited, cell, plan, write


def test_runs_are_counted_by_model_and_by_how_they_ended() -> None:
    campaign, results = audited(2)
    failed = cell("tar", "x", status="failed", reason="out of memory", seconds=0.0)
    found = progress(replace(campaign, cells=[*campaign.cells, failed.cell]), [*results[:-3], failed])
    assert found.all.planned == len(results) + 1
    assert found.all.left == 3 + 1
    assert (found.models["tar"].diverged, found.models["tar"].failed) == (1, 1)
    assert found.reasons == ("out of memory",)
    assert found.seconds == pytest.approx(sum(result.seconds for result in results[:-3]))
    assert found.seconds_left == pytest.approx(4 * found.seconds / (len(results) - 3))


def test_before_any_run_has_ended_nothing_is_foretold(tmp_path: Path) -> None:
    campaign, results = audited(1)
    found = read_progress(write(tmp_path, campaign, []))
    assert (found.all.left, found.seconds_left, found.models) == (len(results), None, {})


def test_the_command_line_says_how_an_audit_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign, results = audited(1)
    write(tmp_path / "a", campaign, results[:-2])
    assert main(["audit", "--status", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert f"{len(results) - 2} of {len(results)} runs ended" in told
    assert "None is running there" in told
    assert "Next: holdfast report" in told  # the synthetic audit's command names no model, so none goes on with it
    write(tmp_path / "b", campaign, results)
    assert main(["audit", "--status", str(tmp_path / "b")]) == 0
    assert "holdfast report" in capsys.readouterr().out
    assert main(["audit", "--status", str(tmp_path)]) == 2
    assert "no campaign.json" in capsys.readouterr().err


def test_a_file_that_is_no_record_has_not_ended(tmp_path: Path) -> None:
    campaign, results = audited(1)
    folder = write(tmp_path, campaign, results)
    (folder / "cells" / f"{results[0].cell}.jsonl").write_text("{")
    assert read_progress(folder).all.left == 1
    assert plan(results).cells == campaign.cells
