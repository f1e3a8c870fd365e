"""An audit whose options stand in a TOML file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from holdfast.cli.app import app, main
from holdfast.runs.audit import Audit
from tests.cli.test_hostile_text import documented

VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

FILE = """
model = "models/tar"
undefended = "owner/name"
domain = "domain"
out = "../out"
peer = ["models/other"]
suite = "demo-2"
seeds = 3
stop-after-breach = 2
without-base = true
milestones = "0,8"
set = ["full-adamw-1e-3.max_steps=9"]
"""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Audit, Path, dict[str, Any]]]:
    """The audits that were run, each with its folder and what it was told."""
    calls: list[tuple[Audit, Path, dict[str, Any]]] = []
    monkeypatch.setattr(Audit, "run", lambda audit, out, workers, **told: calls.append((audit, out, told)))
    monkeypatch.setattr("holdfast.core.export.write_records", lambda *_: 0)
    monkeypatch.setattr("holdfast.cli.measure.finish", lambda _, out: documented(out, "x"))
    monkeypatch.setattr("holdfast.cli.measure.check_cells", lambda _: None)
    return calls


def folder(at: Path, text: str = FILE) -> Path:
    for name in ("models/tar", "models/other", "domain"):
        (at / "audits" / name).mkdir(parents=True)
    path = at / "audits" / "audit.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_stands_for_the_options(tmp_path: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the file, wherever the command is given; a hub id stays what it is."""
    path = folder(tmp_path)
    monkeypatch.chdir("/")
    assert main(["audit", str(path)]) == 0
    [(audit, out, _)] = ran
    assert (audit.model, audit.undefended) == (str(path.parent / "models" / "tar"), "owner/name")
    assert (audit.domain, out) == (path.parent / "domain", tmp_path / "out")
    assert audit.peers == (str(path.parent / "models" / "other"),)
    assert (audit.seeds, audit.stop_after_breach, audit.base, audit.milestones) == (3, 2, False, (0, 8))
    assert "full-adamw-1e-3+max_steps=9" in audit.attacks
    assert audit.called.startswith("demo-2 (version 2, 1 attack changed")


def test_the_command_line_goes_before_the_file_and_the_record_needs_no_file(
    tmp_path: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path)
    monkeypatch.chdir(tmp_path / "audits")
    assert (
        main(["audit", "audit.toml", "--seeds", "7", "--set", "full-adamw-1e-3.max_steps=4", "--precision", "mixed"])
        == 0
    )
    [(audit, _, told)] = ran
    assert (audit.seeds, audit.options.precision) == (7, "mixed")
    assert "full-adamw-1e-3+max_steps=4" in audit.attacks
    program, verb, *words = shlex.split(told["command"])
    assert (program, verb) == ("holdfast", "audit")
    assert "audit.toml" not in words
    again = VERBS[verb].make_context(verb, words).params
    assert (again["model"], again["seeds"], str(again["out"])) == ("models/tar", 7, "../out")
    assert (again["settings"], again["without_base"]) == (["full-adamw-1e-3.max_steps=4"], True)


WRONG = {
    'modle = "x"': "'modle' is no option of holdfast audit; did you mean model",
    'seeds = "3"': 'seeds: input should be a valid integer, not "3"',
    "seeds = true": "seeds: input should be a valid integer",
    "seeds = 0": "--seeds",
    "model = 3": "model: input should be a valid string, not 3",
    'peer = "x"': "peer: input should be a valid list",
    'without-base = "yes"': "without-base: input should be a valid boolean",
    'status = "x"': "'status' is no option",
    "json = true": "'json' is no option",
    'device = "cuda:99"': "there is no device 'cuda:99' here",
    'dtype = "float32"': "dtype is now called precision",
    "x =": "is not valid TOML",
}


@pytest.mark.situation("hostile input", "an audit's file")
@pytest.mark.parametrize("text", WRONG)
def test_an_error_names_the_key(text: str, tmp_path: Path, ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    key = text.partition(" ")[0]
    rest = "\n".join(line for line in FILE.splitlines() if line.partition(" ")[0] != key)
    path = folder(tmp_path, f"{rest}\n{text}\n")
    assert main(["audit", str(path)]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert WRONG[text] in sentence
    assert not ran


def test_what_a_file_lacks_is_asked_for(tmp_path: Path, ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path, 'model = "models/tar"')
    assert main(["audit", str(path)]) == 2
    assert "'--undefended'" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "none.toml")]) == 2
    assert "none.toml cannot be read: No such file or directory" in capsys.readouterr().err
