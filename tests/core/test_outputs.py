"""A result is written over an earlier result of the same command and over nothing else, and into no model's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.files import claim_output, write_text
from holdfast.core.types import HoldfastError
from tests.conftest import SmallTestbed
from tests.report.synthetic import cell, plan, write

ROLES = {"base": "undefended", "tar": "defended"}


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of two models and one attack."""
    curves = {"hazard": {0: 0.3, 5: 0.5}, "ability": {0: 0.9, 5: 0.8}}
    results = [cell(model, attack, **curves) for model in ROLES for attack in ("none", "full-adamw-1e-3")]  # type: ignore[arg-type]
    return write(tmp_path_factory.mktemp("outputs") / "audit", plan(results, ROLES), results)


VERBS: dict[str, tuple[str, Callable[[Path, Path], list[str]]]] = {
    "report": ("r.html", lambda audit, out: ["report", str(audit), "--out", str(out)]),
    "compare": ("c.html", lambda audit, out: ["compare", str(audit), str(audit), "--out", str(out)]),
    "records": ("x.jsonl", lambda audit, out: ["records", str(audit), "--out", str(out)]),
    "records as Parquet": ("x.parquet", lambda audit, out: ["records", str(audit), "--out", str(out)]),
}  # fmt: skip


@pytest.mark.situation("hostile input", "a place for the output")
@pytest.mark.parametrize("what", VERBS)
def test_a_file_of_somebody_else_is_refused_and_an_earlier_result_replaced(
    what: str, audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, arguments = VERBS[what]
    out = tmp_path / name
    out.write_bytes(b"")
    assert main(arguments(audit, out)) == 0, "an empty file holds nothing"
    for written in sorted(tmp_path.iterdir()):  # a page has three forms
        first = written.read_bytes()
        assert first
        for others in (b"precious\n", b'{"title": "mine"}\n', b"\x00" * 200_000):
            written.write_bytes(others)
            assert main(arguments(audit, out)) == 2
            [sentence] = capsys.readouterr().err.splitlines()
            assert f"{written} is there already" in sentence
            assert "--out" in sentence
            assert written.read_bytes() == others
        written.write_bytes(first)
    assert main(arguments(audit, out)) == 0, "its own earlier result"


@pytest.mark.situation("hostile input", "a place for the output")
@pytest.mark.parametrize("verb", ["report", "records", "compare"])
def test_the_files_of_a_campaign_are_refused(
    verb: str, audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "audit"
    shutil.copytree(audit, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = next((folder / "cells").iterdir())
    out = {"report": folder / "campaign.html", "compare": folder / "campaign.html", "records": record}[verb]
    folders = [str(folder)] * (1 + (verb == "compare"))
    assert main([verb, *folders, "--out", str(out)]) == 2
    assert "is there already and is no earlier result of this command" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.situation("hostile input", "a place for the output")
@pytest.mark.parametrize("name", ["model.safetensors", "scores.json", "sub/scores.json", "config.json"])
def test_scores_are_written_into_no_model(
    name: str, tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_testbed.folder / "model", model)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    words = ["--model", str(model), "--domain", str(tiny_testbed.folder)]
    assert main(["evaluate", *words, "--out", str(model / name)]) == 2
    assert f"is inside the model's folder {model}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


@pytest.mark.situation("hostile input", "a place for the output")
@pytest.mark.parametrize("verb", ["safeguard", "attack"])
def test_a_folder_inside_a_model_is_refused(
    verb: str, tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_testbed.folder / "model", model)
    preset = {"safeguard": "random-mapping", "attack": "full-adamw-1e-3"}[verb]
    words = ["--model", str(model), "--domain", str(tiny_testbed.folder), "--out", str(model / "sub" / "out")]
    assert main([verb, preset, *words]) == 2
    assert f"is inside the model's folder {model}" in capsys.readouterr().err
    assert not (model / "sub").exists()


def test_a_config_that_is_no_model_s_hinders_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    claim_output(tmp_path / "out")


@pytest.mark.situation("hostile input", "a place for the output")
def test_a_device_is_no_file_to_be_replaced(audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    assert main(["records", str(audit), "--out", str(pipe)]) == 2
    assert "give another --out" in capsys.readouterr().err
    with pytest.raises(HoldfastError, match="is no file"):
        write_text(pipe, "text")
    assert pipe.is_fifo()


@pytest.mark.situation("damaged file", "a record")
def test_a_record_of_something_that_was_not_planned_is_refused(
    audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that belongs to the campaign by its name alone."""
    from holdfast.core.records import CampaignPlan, CellResult

    folder = tmp_path / "audit"
    shutil.copytree(audit, folder)
    path = sorted((folder / "cells").iterdir())[0]
    result = CellResult.read(path)
    for changed, where in ((replace(result, model="other"), "models"), (replace(result, attack="other"), "attacks")):
        changed.write(path)
        assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 2
        assert f"{path} is no cell of {folder / 'campaign.json'}, whose {where} lack 'other'" in capsys.readouterr().err
    result.write(path)
    whole = CampaignPlan.read(folder)
    replace(whole, cells=[*whole.cells, *whole.cells]).write(folder)
    assert main(["records", str(folder), "--out", str(tmp_path / "x.jsonl")]) == 0
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)), "a cell that is listed twice counts once"
