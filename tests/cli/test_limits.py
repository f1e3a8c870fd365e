"""Numbers and texts beyond all measure on the command line, terminals without Unicode, and memory that runs out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.cli.app import main
from holdfast.core.memory import shortage
from tests.conftest import SmallTestbed
from tests.report.synthetic import audited, write

HUGE = "9" * 5000


def sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith("holdfast: ")
    return said


def safeguard(testbed: SmallTestbed, out: Path, *more: str) -> list[str]:
    named = ["--model", testbed.model.path, "--domain", str(testbed.folder), "--out", str(out)]
    return ["safeguard", "random-mapping", *named, *more]


VALUES = (
    "nan", "inf", "1e400", "-1", "[]", "()", "{}", "é", "'2'", "", " ", HUGE, "(" * 500, "-" * 20000 + "1",
    "[" * 3000 + "]" * 3000, "1j", "b'x'", "'\\ud800'", "5;5", "2**99999999", "__import__('os').system('x')", "x " * 3000,
)  # fmt: skip


@pytest.mark.situation("hostile input", "a setting")
@pytest.mark.parametrize("value", VALUES, ids=[value[:12] for value in VALUES])
def test_a_value_that_is_no_number(
    value: str, tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for field in ("outer_steps", "learning_rate"):
        said = sentence(safeguard(tiny_testbed, tmp_path / "out", "--set", f"random-mapping.{field}={value}"), capsys)
        assert len(said) < 260, said
        assert field in said


@pytest.mark.situation("hostile input", "the words of a command")
@pytest.mark.parametrize(
    "words",
    [
        ["safeguard", "x", "--threads", "100000"], ["evaluate", "--threads", "100000"], ["demo", "--workers", "1000000"],
        ["audit", "--workers", "1000000"], ["safeguard", "x", "--seed", HUGE], ["audit", "--seeds", HUGE],
        ["safeguard", "x", "--set", HUGE], ["audit", "--milestones", HUGE], ["audit", "--milestones", "1," * 3000 + "x"],
        ["audit", "--suite", HUGE], ["attack", HUGE], ["list", HUGE], [HUGE], [f"--{HUGE}"],
    ],
    ids=lambda words: " ".join(words)[:30],
)  # fmt: skip
def test_a_number_beyond_all_measure(
    words: list[str], tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_testbed.model.path
    needed = {"--model": model, "--domain": str(tiny_testbed.folder), "--out": str(tmp_path / "out")}
    if words[0] in ("audit", "attack", "safeguard", "evaluate"):
        words = [
            words[0].replace(" x", ""),
            *(w.replace("x", "random-mapping", 1) if w == "x" else w for w in words[1:]),
        ]
        words += [part for pair in needed.items() for part in pair]
        words += ["--undefended", model] if words[0] == "audit" else []
    said = sentence(words, capsys)
    assert len(said) < 720
    assert HUGE not in said


NO_UNICODE: tuple[dict[str, str], ...] = (
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@pytest.mark.situation("hostile input", "a terminal without Unicode")
@pytest.mark.parametrize("environment", NO_UNICODE, ids=lambda variables: next(iter(variables.values())))
def test_a_process_on_a_terminal_without_unicode(environment: dict[str, str], tmp_path: Path) -> None:
    """The folder's name has an accent and brackets too."""
    write(tmp_path / "é [x]", *audited(seeds=1))
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "audit", "--status", "é [x]"], cwd=tmp_path, capture_output=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert b"Next: holdfast report" in done.stdout
    assert b"[x]" in done.stdout


def on_a_stream(words: list[str], encoding: str) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
    with redirect_stdout(stream), redirect_stderr(stream):
        main(words)
    stream.seek(0)
    return stream.read()


@pytest.mark.situation("hostile input", "a terminal without Unicode")
@pytest.mark.parametrize(
    "verb", ["list", "testbed", "safeguard", "attack", "evaluate", "audit", "search", "report", "study"]
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_on_a_terminal_without_unicode(verb: str, encoding: str) -> None:
    assert "Usage" in on_a_stream([verb, "--help"], encoding)


SHORTAGES: dict[str, tuple[BaseException, str]] = {
    "Python": (MemoryError(), "memory ran out"),
    "torch on the host": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "memory ran out",
    ),
    "torch on a device": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the device's memory"),
    "the system": (OSError(12, "Cannot allocate memory"), "memory ran out"),
    "a library that cannot be loaded": (
        ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory ran out"
    ),
    "threads": (RuntimeError("can't start new thread"), "memory ran out"),
}  # fmt: skip

KNOBS = {"safeguard": "--precision lean", "evaluate": "--precision lean", "report": "fewer folders"}


@pytest.mark.situation("interruption", "memory that runs out")
@pytest.mark.parametrize("what", SHORTAGES)
@pytest.mark.parametrize("verb", KNOBS)
def test_memory_that_runs_out_is_a_sentence_that_names_the_knob(
    verb: str, what: str, tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    error, said = SHORTAGES[what]

    def run_out(*_: Any, **__: Any) -> None:
        raise error

    for place in ("runs.stages.build", "runs.evaluate.evaluate", "report.page.build_report"):
        monkeypatch.setattr(f"holdfast.{place}", run_out)
    named = ["--model", tiny_testbed.model.path, "--domain", str(tiny_testbed.folder)]
    words = {
        "safeguard": safeguard(tiny_testbed, tmp_path / "out"),
        "evaluate": ["evaluate", *named],
        "report": ["report", str(tmp_path), "--out", "x.html"],
    }[verb]
    told = sentence(words, capsys)
    assert told.startswith(f"holdfast: {said}")
    assert KNOBS[verb] in told


def test_torch_says_so_when_it_cannot_allocate() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert shortage(refused.value) == "memory ran out"
    assert shortage(ValueError("cannot allocate memory, says a row of the data")) is None
