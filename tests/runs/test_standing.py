"""A folder that a long run works in: claimed, held by one process, and able to say how the run stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.runs.standing import MARKER, Standing, working_in


def nothing() -> None:
    """A job's call."""


def test_a_folder_is_claimed_first_and_held_until_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with working_in(out, "demo", {"seed": 1}, "holdfast demo"):
        assert Standing.read(out).what == "demo"
        with (
            pytest.raises(HoldfastError, match="another holdfast is running"),
            working_in(out, "demo", {"seed": 1}, ""),
        ):
            pass
    with working_in(out, "demo", {"seed": 1}, "holdfast demo"):
        pass


def test_a_folder_of_another_run_or_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with working_in(out, "demo", {"seed": 1}, ""):
        pass
    before = (out / MARKER).read_bytes()
    for what, settings in (("demo", {"seed": 2}), ("search", {"seed": 1})):
        refusal = pytest.raises(HoldfastError, match=r"holds the demo \(seed 1\); give another --out")
        with refusal, working_in(out, what, settings, ""):
            pass
    assert (out / MARKER).read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(HoldfastError, match="already holds something else"),
        working_in(tmp_path / "other", "demo", {}, ""),
    ):
        pass
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_a_damaged_marker_is_named(tmp_path: Path) -> None:
    wrong = ('{"what": "demo", "speed": 3}', '{"what": "demo", "running": 3}', '{"what": "demo", "seconds": "long"}')
    for content in ("{", "[]", "{}", *wrong):
        (tmp_path / MARKER).write_text(content)
        with pytest.raises(HoldfastError, match=r"run\.json is damaged"):
            Standing.read(tmp_path)


def test_time_adds_up_over_processes_and_failures_are_noted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = Job(name="train", call=nothing)
    with working_in(out, "study claims", {}, "holdfast study claims") as work:
        work.progress(Progress(done=[Outcome(job=job, error="the disk is full")]))
    first = Standing.read(out)
    assert (first.done, first.failed) == (1, ["train: the disk is full"])
    with working_in(out, "study claims", {}, "holdfast study claims") as work:
        assert work.seconds >= first.seconds
    assert Standing.read(out).seconds >= first.seconds


@pytest.mark.parametrize("verb", ["demo", "study", "search", "audit"])
def test_every_long_verb_says_how_a_run_stands(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    study = Standing(what="study claims", command="holdfast study claims", seconds=70.0, done=3, waiting=2)
    replace(study, running=["TAR"], failed=["RMU: it died"]).write(out)
    assert main([verb, "--status", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "The study claims in",
        "3 jobs ended, 3 to go",
        "Running: TAR",
        "Failed: RMU: it died",
        "None is running",
    ):
        assert words in printed, words
    assert printed.rstrip().endswith(f"Next: holdfast study claims --out {out}")
    assert main([verb, "--status", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
