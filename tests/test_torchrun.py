"""Commands under torchrun itself: what the user reads when a process ends, and how the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.files import only_writer
from tests.conftest import SmallTestbed
from tests.test_many_processes import CLOSE, apart

SIGNALS = """
import os, signal
from holdfast.engine import walk
from holdfast.engine.run import Run

walk.SAVE_EVERY, save = 0.0, Run.save
rank, whom, number = os.environ["HOLDFAST_TEST_SIGNAL"].split()

def saved(self, path, model, step, key):
    save(self, path, model, step, key)
    if step == 2 and os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid() if whom == "itself" else os.getppid(), int(number))

Run.save = saved
from holdfast.cli.app import entry
entry()
"""
"""The command, whose rank sends a signal after its second saved state: to itself, or to the launcher."""

FULL = """
import errno, os
from contextlib import contextmanager
from holdfast.engine import state, walk

walk.SAVE_EVERY, atomic_file, states = 0.0, state.atomic_file, []

class Full:
    def __init__(self, file):
        self.file, self.left = file, 100_000
    def write(self, part):
        self.left -= len(part)
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(part)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()

class Place:
    def __init__(self, path):
        self.path = path
    def open(self, mode):
        return Full(self.path.open(mode))

@contextmanager
def filling(path, mode):
    states.append(path)
    with atomic_file(path, mode=mode) as temporary:
        yield temporary if len(states) == 1 else Place(temporary)

state.atomic_file = filling
from holdfast.cli.app import entry
entry()
"""
"""The command, whose disk is full in the middle of the second state."""

ENDED = "holdfast: a process of this run has ended; run the same command again to go on from what was saved last"
SYSTEM = "holdfast: stopped by the system; run the same command again to go on"
INTERRUPTED = "holdfast: stopped; run the same command again to go on"


def words(testbed: SmallTestbed, out: Path) -> list[str]:
    settings = ("outer_steps=4", "forget_batch_size=8", "retain_batch_size=8")
    return [
        "safeguard", "rmu", "--model", str(testbed.folder / "model"), "--domain", str(testbed.folder),
        *(word for setting in settings for word in ("--set", f"rmu.{setting}")), "--out", str(out),
    ]  # fmt: skip


def torchrun(
    program: list[str], cache: Path, *options: str, what: str = "0 nobody 0"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options, *program],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HOLDFAST_CACHE": str(cache), "HOLDFAST_TEST_SIGNAL": what},
        start_new_session=True,
    )


def sentences(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What holdfast itself says of how the command ended."""
    return [line for line in ended.stderr.splitlines() if line.startswith("holdfast: ")]


def check(testbed: SmallTestbed, out: Path, folder: Path) -> None:
    """Compare with a run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_CACHE", str(folder / "cache-alone"))
        assert main(words(testbed, folder / "alone")) == 0
    assert apart(testbed.folder / "model", folder / "alone", out) <= CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        (f"1 itself {signal.SIGKILL}", (ENDED, SYSTEM)),  # whichever the other process sees first: torchrun stops it
        (f"0 itself {signal.SIGKILL}", (ENDED, SYSTEM)),
        (f"0 launcher {signal.SIGINT}", (INTERRUPTED,)),
        (f"1 launcher {signal.SIGTERM}", (SYSTEM,)),
    ],
    ids=["a killed rank", "a killed rank 0", "Ctrl-C", "SIGTERM"],
)
def test_a_run_that_ends_early_says_so_in_one_sentence_and_goes_on(
    what: str, said: tuple[str, ...], tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    script, out, cache = tmp_path / "signals.py", tmp_path / "out", tmp_path / "cache"
    script.write_text(SIGNALS)
    ended = torchrun([str(script), *words(tiny_testbed, out)], cache, what=what)
    assert ended.returncode != 0
    assert len(sentences(ended)) == 1, ended.stderr
    assert sentences(ended)[0] in said
    assert [*(cache / "stages").glob("*.part")]
    again = torchrun(["-m", "holdfast", *words(tiny_testbed, out)], cache)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("The safeguarded model is in") == 1
    check(tiny_testbed, out, tmp_path)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_that_lost_a_process(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    script, out = tmp_path / "signals.py", tmp_path / "out"
    script.write_text(SIGNALS)
    program = [str(script), *words(tiny_testbed, out)]
    ended = torchrun(program, tmp_path / "cache", "--max-restarts", "1", what=f"1 itself {signal.SIGKILL}")
    assert ended.returncode == 0, ended.stderr
    check(tiny_testbed, out, tmp_path)


@pytest.mark.slow
def test_torchrun_ends_its_own_report_with_the_sentence(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    model = ["--model", str(tiny_testbed.folder / "model"), "--domain", str(tiny_testbed.folder)]
    ended = torchrun(["-m", "holdfast", "attack", "full-adamw-1e-3", *model], tmp_path)
    [said] = sentences(ended)
    assert said.startswith("holdfast: missing option '--out'")
    assert said in "".join(ended.stderr.splitlines()[-20:])
    assert ended.returncode != 0


@pytest.mark.slow
@pytest.mark.situation(
    "interruption", "a model that several processes share: a full disk, a second command, a damaged state"
)
def test_a_full_disk_a_second_command_and_a_damaged_state_are_a_sentence_each(
    tiny_testbed: SmallTestbed, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("situations", 3)
    script, out, cache = tmp_path / "full.py", tmp_path / "out", tmp_path / "cache"
    script.write_text(FULL)
    ended = torchrun([str(script), *words(tiny_testbed, out)], cache)
    assert ended.returncode != 0
    [said] = sentences(ended)
    assert said.startswith("holdfast: the disk is full (")
    [state] = (cache / "stages").glob("*.part")
    kept = state.read_bytes()
    assert not [*tmp_path.rglob(".*.holdfast")]
    with only_writer(out):
        ended = torchrun(["-m", "holdfast", *words(tiny_testbed, out)], cache)
    assert ended.returncode != 0
    [said] = sentences(ended)
    assert "another holdfast" in said
    assert state.read_bytes() == kept
    state.write_bytes(kept[:-100] + bytes([kept[-100] ^ 1]) + kept[-99:])
    ended = torchrun(["-m", "holdfast", *words(tiny_testbed, out)], cache)
    assert ended.returncode == 0, ended.stderr
    assert "is damaged or of another version; its run begins anew" in ended.stderr
    check(tiny_testbed, out, tmp_path)
