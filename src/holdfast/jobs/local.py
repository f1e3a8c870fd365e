"""Workers that are processes of this machine: the executor that needs nothing.

A worker is a fresh Python with one torch thread, reused from job to job.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import ClassVar

from holdfast.core.memory import LESS
from holdfast.jobs.executor import Arrival, Place
from holdfast.jobs.worker import serve

_FRESH = multiprocessing.get_context("spawn")
"""how workers are started; a fork of what has loaded torch could not use a GPU"""


@dataclass(frozen=True)
class Local:
    """Processes of this machine."""

    shares_memory: ClassVar[bool] = True

    workers: int = 2
    """processes at a time"""

    @property
    def threads(self) -> int:
        """One a process: more would compete for the same cores."""
        return 1

    def open(self) -> Place:
        """Make a place without processes."""
        return _Processes()


class _Processes:
    """The processes of one run."""

    def __init__(self) -> None:
        self._processes: dict[str, BaseProcess] = {}
        self._came: list[Arrival] = []

    def begin(self, count: int) -> None:
        for _ in range(count):
            ours, theirs = _FRESH.Pipe()
            # No daemon, which could have no processes of its own (`campaign.on_ranks`); a worker ends with its connection.
            process = _FRESH.Process(target=serve, args=(theirs,))
            with _one_thread():
                process.start()
            theirs.close()
            self._processes[str(process.pid)] = process
            self._came.append(Arrival(ours, str(process.pid)))

    def arrivals(self) -> list[Arrival]:
        """A process counts as come when it is begun: what is sent to it waits in its pipe."""
        came, self._came = self._came, []
        return came

    def coming(self) -> int:
        return 0

    def fate(self, name: str) -> str:
        process = self._processes.pop(name)
        process.join()
        code = process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"its process died ({how}), perhaps for lack of memory: give fewer --workers, or {LESS}"

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Start the children of this block with one thread each: libraries read this before the worker is told."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
