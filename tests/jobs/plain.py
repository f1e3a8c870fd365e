"""Jobs that need nothing, for workers that start at once: their torch is an empty module (`nearby`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from holdfast.core.reuse import say_reused
from holdfast.core.stopping import Stopped, saving
from holdfast.core.types import HoldfastError
from holdfast.jobs.door import Door
from holdfast.jobs.executor import Arrival, Place

OnStep = Callable[[int, int], None]

WORK = (
    "import sys; from holdfast.jobs.door import work_at; "
    "work_at(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4])"
)


def where(on_step: OnStep) -> tuple[int, str, str]:
    return os.getpid(), str(Path.cwd()), os.environ.get("HOLDFAST_PLAIN", "")


def die(on_step: OnStep) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_stopped(on_step: OnStep) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def count(file: Path, to: int, on_step: OnStep) -> int:
    """Count on from what the file says, and keep the count in it when the system stops the process."""
    done = int(file.read_text()) if file.exists() else 0
    with saving() as asked_to_stop:
        while done < to:
            done += 1
            on_step(done, to)
            time.sleep(0.05)
            if asked_to_stop():
                file.write_text(str(done))
                raise Stopped
    file.unlink(missing_ok=True)
    return os.getpid()


@dataclass(frozen=True)
class Nearby:
    """An executor whose workers come in at the door, as those of a cluster do, from this machine."""

    workers: int = 2
    threads: int = 1
    shares_memory: ClassVar[bool] = False

    def open(self) -> Place:
        return _Processes()


class _Processes:
    def __init__(self) -> None:
        self.door = Door("localhost")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.expected: set[str] = set()

    def begin(self, count: int) -> None:
        for _ in range(count):
            name = str(len(self.processes))
            words = [self.door.host, str(self.door.port), self.door.key.hex(), name]
            self.processes[name] = subprocess.Popen([sys.executable, "-c", WORK, *words])
            self.expected.add(name)

    def arrivals(self) -> list[Arrival]:
        came = self.door.arrivals()
        self.expected -= {arrival.name for arrival in came}
        return came

    def coming(self) -> int:
        return len(self.expected)

    def fate(self, name: str) -> str:
        return f"it ended with status {self.processes[name].wait()}"

    def close(self) -> None:
        self.door.close()
        for process in self.processes.values():
            process.wait(timeout=30)


def run_out(where: str, on_step: OnStep) -> None:
    if where == "host":
        raise HoldfastError("the model cannot be loaded") from MemoryError()

    class OutOfMemoryError(RuntimeError):
        """As torch's is called."""

    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def crowd(folder: Path, most: int, shortages: int, on_step: OnStep) -> None:
    """Take memory that is enough for `most` at a time, and keep it until it has run out for `shortages` workers."""
    mine = folder / "has" / str(os.getpid())
    for place in (mine.parent, folder / "short"):
        place.mkdir(exist_ok=True)
    mine.touch()
    try:
        if len(list(mine.parent.iterdir())) > most:
            (folder / "short" / mine.name).touch()
            raise MemoryError
        for _ in range(1000):
            if len(list((folder / "short").iterdir())) >= shortages:
                return
            time.sleep(0.02)
    finally:
        mine.unlink()


def reuse(part: bool, on_step: OnStep) -> None:
    """Use what was there: all of it, or a part, after which steps are left."""
    say_reused("what was there")
    if part:
        on_step(1, 2)


def rest(on_step: OnStep) -> None:
    """Be at work for as long as some displays of progress."""
    on_step(0, 1)
    time.sleep(0.5)
