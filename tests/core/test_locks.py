"""A folder is held by one process, wherever temporary files lie and whatever the file system can do; a kill leaves it free."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.core import locks
from holdfast.core.files import claim_output
from holdfast.core.locks import LOCK, held, is_held, only_one
from holdfast.core.types import HoldfastError

HOLD = """
import sys, time
from pathlib import Path
from holdfast.core.locks import only_one
try:
    with only_one(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
except Exception as error:
    print(error)
"""


def holder(folder: Path, temporary: Path) -> subprocess.Popen[str]:
    """A process that holds a folder, with a folder of its own for temporary files, as every job of a cluster has."""
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )


def no_flock(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(params=["flock", "ENOSYS", "ENOTSUP", "ENOLCK"])
def any_file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "flock":
        no_flock(monkeypatch, getattr(errno, request.param))


@pytest.mark.situation("interruption", "a lock left by a kill")
def test_two_jobs_with_folders_of_their_own_for_temporary_files_and_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with holder(out, tmp_path / "a") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert is_held(out)
        with holder(out, tmp_path / "b") as second:
            assert second.stdout is not None
            said = second.stdout.read()
        assert re.fullmatch(
            rf"another holdfast is running in {out} \(process {first.pid} on [\w.-]+\); wait for it, or stop it first\n",
            said,
        )
        first.kill()
    assert [path.name for path in out.iterdir()] == [LOCK]
    assert not is_held(out)
    claim_output(out)  # it holds nothing else
    with only_one(out):
        assert is_held(out)


@pytest.mark.usefixtures("any_file_system")
def test_a_held_folder_is_refused_and_nothing_stays_of_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert not is_held(out)
    with only_one(out):
        assert is_held(out)
        with pytest.raises(HoldfastError, match="another holdfast is running in"), only_one(out):
            pass
        assert is_held(out)
    assert list(tmp_path.iterdir()) == []  # nor of the folders that the lock was made in
    with only_one(out):
        (out / "mine").write_text("x")
    assert list(out.iterdir()) == [out / "mine"]
    assert not is_held(out)


@pytest.mark.usefixtures("any_file_system")
def test_of_many_that_wait_one_goes_at_a_time(tmp_path: Path) -> None:
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(4):
            with held(tmp_path / "lock", "at it", patience=60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 16)
    assert list(tmp_path.iterdir()) == []


def test_whoever_waits_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_SAYS_AFTER", 0.0)
    with held(tmp_path / "lock", "writing x"), pytest.raises(HoldfastError), held(tmp_path / "lock", "writing x", 0.3):
        pass
    [record] = caplog.records
    assert record.getMessage().startswith("waiting for another holdfast, which is writing x (process ")


def test_asking_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("left by a kill")
    before = (tmp_path / LOCK).stat()
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "nowhere")
    assert (tmp_path / LOCK).stat() == before
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


MACHINE = re.sub(r"[^\w.-]", "-", socket.gethostname())


def ended() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@pytest.mark.situation("interruption", "a lock left by a kill")
@pytest.mark.parametrize("claim", ["ended", "another process of that number"])
def test_without_flock_a_killed_process_blocks_nobody(
    claim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_flock(monkeypatch, errno.ENOSYS)
    process = ended() if claim == "ended" else os.getppid()
    (tmp_path / f"{LOCK}.{MACHINE}.{process}.7").touch()
    assert not is_held(tmp_path)
    claim_output(tmp_path)
    with only_one(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.situation("interruption", "a lock left by a kill")
@pytest.mark.parametrize(
    "name",
    ["elsewhere.3.77", f"not-{MACHINE}.{os.getpid()}.1", "damaged"],
    ids=["another machine", "a name that ends as this one", "damaged"],  # the same in every process that runs tests
)
def test_without_flock_another_machine_s_process_is_named_with_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_flock(monkeypatch, errno.ENOLCK)
    there = tmp_path / f"{LOCK}.{name}"
    there.touch()
    assert is_held(tmp_path)
    with pytest.raises(HoldfastError, match=re.escape(f"if it has been killed, remove {there}")), only_one(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [there]


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": lambda lock: lock.touch(),
    "text": lambda lock: lock.write_text("process of \x1b[31m somebody"),
    "zeros": lambda lock: lock.write_bytes(bytes(10_000)),
    "no text": lambda lock: lock.write_bytes(b"\xff\xfe\xff"),
    "a pipe": lambda lock: os.mkfifo(lock),
    "a folder": lambda lock: lock.mkdir(),
    "a link": lambda lock: lock.symlink_to(lock.parent / "precious"),
    "a link to nothing": lambda lock: lock.symlink_to(lock.parent / "nothing"),
}


@pytest.mark.situation("damaged file", "a lock")
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_lock_is_no_obstacle_or_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    DAMAGED[what](tmp_path / LOCK)
    if what.startswith(("a folder", "a link")):
        with pytest.raises(HoldfastError, match=rf"{LOCK} is no lock of holdfast; move it away"), only_one(tmp_path):
            pass
    else:
        with only_one(tmp_path):
            pass
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()
    assert not is_held(tmp_path)


def test_what_a_lock_says_of_its_owner_is_checked(tmp_path: Path) -> None:
    """Another's lock may hold anything."""
    lock = tmp_path / LOCK
    with only_one(tmp_path):
        lock.write_text("process 1 on \x1b[31mred\n")
        with pytest.raises(HoldfastError) as refused, only_one(tmp_path):
            pass
    assert str(refused.value) == f"another holdfast is running in {tmp_path}; wait for it, or stop it first"
