"""Where workers come from. An executor is one file that implements these two interfaces; `jobs.run` does all else."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class Arrival:
    """A worker that is there and waits for jobs."""

    connection: Connection
    name: str
    """what its place calls the worker"""


class Place(Protocol):
    """The workers of one run. A worker runs `jobs.worker.serve` at the other end of its connection."""

    def begin(self, count: int) -> None:
        """Begin to start so many workers. A place may start fewer, and is then asked again."""

    def arrivals(self) -> list[Arrival]:
        """The workers that have come since the last call."""

    def coming(self) -> int:
        """How many workers were begun and have not come yet.

        Raises:
            HoldfastError: none came, and none will.
        """

    def fate(self, name: str) -> str:
        """What became of a worker that is gone, and what may help, as the end of a sentence."""

    def close(self) -> None:
        """End every worker that is left."""


class Executor(Protocol):
    """A kind of place, with its settings."""

    shares_memory: ClassVar[bool]
    """whether all workers take from the memory of one machine, or of one device, so that fewer workers leave more for each"""

    @property
    def workers(self) -> int:
        """The most workers at a time."""

    @property
    def threads(self) -> int:
        """Processor threads of a worker."""

    def open(self) -> Place:
        """Make a place without workers.

        Raises:
            HoldfastError: there is no such place here.
        """


Workers = int | Executor
"""so many processes of this machine, or an executor that has its workers elsewhere"""


def count(workers: Workers) -> int:
    """The most workers at a time."""
    return workers if isinstance(workers, int) else workers.workers
