"""`--json`: one document on standard output and nothing else, as the schema says; and the status that `--fail-on` asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from holdfast.cli.app import main
from holdfast.cli.documents import schema
from holdfast.core.records import CampaignPlan
from holdfast.runs.standing import Standing
from holdfast.runs.suites import SUITES
from tests.cli.test_hostile_text import VERBS, stubbed
from tests.report.synthetic import audited, write

SCHEMA = Path(__file__).parents[2] / "docs" / "commands.schema.json"


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("json") / "audit", *audited(5))


def document(capsys: pytest.CaptureFixture[str], words: Sequence[object], status: int = 0) -> dict[str, Any]:
    """The document that a command prints, which has the schema."""
    assert main([str(word) for word in words]) == status
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(printed)
    return printed


def test_the_schema_in_the_docs_is_that_of_the_documents() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == schema(), (
        "python -m holdfast.cli.documents docs/commands.schema.json writes it anew"
    )


def test_a_report_tells_verdicts_and_figures(audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, ["report", audit, "--out", tmp_path / "r.html", "--json"])
    [campaign] = told["audits"]
    assert [line["model"] for line in campaign["verdicts"]] == ["tar"]
    lines = {line["model"]: line for line in campaign["models"]}
    assert lines["tar"]["verdict"] == campaign["verdicts"][0]["verdict"]
    assert lines["base"]["verdict"] is None
    assert lines["base"]["hazard_before"] == pytest.approx(1.0, abs=0.05)
    assert lines["base"]["hazard_worst"] > lines["tar"]["hazard_worst"]
    assert told["next"].startswith(f"holdfast report {audit} --public")


def test_the_verbs_that_tell_have_documents(audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = document(capsys, ["compare", audit, audit, "--out", tmp_path / "c.html", "--json"])
    assert [model["Model"] for model in compared["groups"][0]["models"]] == ["tar (1)", "tar (2)"]
    assert document(capsys, ["card", audit, "--out", tmp_path / "card.md", "--json"])["path"].endswith("card.md")
    written = document(capsys, ["records", audit, "--out", tmp_path / "r.jsonl", "--json"])
    assert written["records"] == len((tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines())
    checked = document(capsys, ["verify", audit, "--json"], status=1)
    assert (checked["sound"], checked["next"]) == (False, None), "invented records are not what an audit leaves"
    estimate = document(capsys, ["study", "ablations", "--estimate", "--workers", 4, "--json"])
    assert estimate["hours"] > 0
    assert estimate["next"].endswith("--workers 4"), "what belongs to the machine is carried on"


def test_list_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    whole = document(capsys, ["list", "--json"])
    assert [suite["name"] for suite in whole["suites"]] == list(SUITES)
    assert document(capsys, ["list", "suites", "--json"])["attacks"] is None
    [tar] = document(capsys, ["list", "tar", "--json"])["presets"]
    fields = {field["name"]: field["value"] for field in tar["fields"]}
    assert fields["inner_steps"] == 24
    assert fields["adversaries"][0]["attack"]["class"] == "FineTune"
    assert main(["list", "tarr", "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [["--status", "DIR", "--json"], ["--json", "--status", "DIR"]])
def test_status_tells_how_a_run_stands(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Standing(what="demo", command="holdfast demo", done=2, waiting=1, running=["x"]).write(tmp_path / "demo")
    plan = CampaignPlan(title="t", domain="d", suite="s", models={}, cells=["a", "b"])
    plan.write(tmp_path / "audit")

    def told(folder: str) -> dict[str, Any]:
        return document(capsys, ["audit", *(word.replace("DIR", str(tmp_path / folder)) for word in words)])

    assert (told("demo")["done"], told("demo")["left"], told("demo")["running"]) == (2, 2, ["x"])
    assert (told("audit")["done"], told("audit")["left"], told("audit")["working"]) == (0, 2, False)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_work_print_the_document_alone(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the verb, its progress and libraries print goes to standard error."""
    at, out = tmp_path / "in", tmp_path / "out"
    at.mkdir()
    with stubbed(verb, out, "x\x1b[2J"):
        told = document(capsys, [*VERBS[verb][1](at, out), "--json"])
    assert told["next"].startswith("holdfast ")
    assert "\x1b" not in told["next"]


def test_an_error_leaves_standard_output_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html"), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("holdfast: ")
    print("x")
    assert capsys.readouterr().out == "x\n", "standard output is back"


def test_a_verdict_that_is_named_ends_with_a_status_of_its_own(
    audit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(audit), "--out", str(tmp_path / "r.html")]
    [line] = document(capsys, [*words, "--json"])["audits"][0]["verdicts"]
    verdict = line["verdict"].replace(" ", "-")
    other = next(name for name in ("breached", "undecided", "not-recovered") if name != verdict)
    assert main([*words, "--fail-on", other]) == 0
    assert main([*words, "--fail-on", f"{other}, {verdict}"]) == 3
    assert f"The exit status is 3: tar is {line['verdict']}." in capsys.readouterr().out
    document(capsys, [*words, "--fail-on", verdict, "--json"], status=3)
    assert main([*words, "--fail-on", "broken"]) == 2
    assert "--fail-on 'broken' is no verdict" in capsys.readouterr().err


def test_an_audit_ends_by_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at, out = tmp_path / "in", tmp_path / "out"
    at.mkdir()
    with stubbed("audit", out, "x"):
        words = [str(word) for word in VERBS["audit"][1](at, out)]
        assert main([*words, "--fail-on", "breached"]) == 3
        assert main([*words, "--fail-on", "undecided"]) == 0
    assert "Next: holdfast card" in capsys.readouterr().out
