"""Jobs and their dependencies, as a value; a runner asks the graph which jobs may start."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A call of a module-level function, which is also given `on_step(done, total)` to report progress with."""

    name: str
    """for people; two jobs of one name are two jobs"""
    call: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    after: tuple[Job, ...] = ()
    """the jobs that must have succeeded before; they are part of the graph even where nobody lists them"""
    size: float = 1.0
    """how long it takes beside the others: for the order (dependencies first) and the estimate of the time left"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended."""

    job: Job
    result: Any = None
    error: str | None = None
    """one sentence; None where it succeeded"""
    details: str = ""
    """the traceback, where the error was unexpected"""
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """The progress of a graph of jobs, for a display."""

    done: list[Outcome] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    """name -> share done"""
    waiting: int = 0
    share: float = 0.0
    """of all work, by the jobs' sizes"""
    seconds: float = 0.0
    """since the start"""

    @property
    def seconds_left(self) -> float | None:
        """The estimate of seconds left; None until 2 % of the work is done."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0.02 else None


class Graph:
    """The jobs that may start, given the jobs that have ended."""

    def __init__(self, jobs: Sequence[Job], on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Order the jobs.

        Args:
            jobs: in order of preference among those that may start; what a job waits for is preferred as the job is.
            on_outcome: called as each job ends, one that was never run included.

        Raises:
            graphlib.CycleError: a job waits for itself, by way of others or not.
        """
        self.outcomes: dict[Job, Outcome] = {}
        self._on_outcome = on_outcome
        self._sorter = TopologicalSorter[Job]()
        self._preference: dict[Job, int] = {}
        for job in _with_needed(jobs):
            self._preference[job] = len(self._preference)
            self._sorter.add(job, *job.after)
        self._sorter.prepare()
        self._ready: list[tuple[int, Job]] = []
        """a heap; the first is started next"""
        self._ended = 0.0
        """sizes of the jobs that have ended; those that found their work done count nowhere"""
        self._found_done = set[Job]()
        self._started = time.monotonic()
        self._total = sum(job.size for job in self._preference)
        self._find_ready()

    @property
    def active(self) -> bool:
        """Whether a job has not ended yet."""
        return self._sorter.is_active()

    @property
    def ready(self) -> int:
        """How many jobs may start."""
        return len(self._ready)

    def start(self) -> Job | None:
        """Take the next job that may start; None where all wait for others that run."""
        return heapq.heappop(self._ready)[1] if self._ready else None

    def again(self, job: Job) -> None:
        """Put a job that was started back to the front."""
        heapq.heappush(self._ready, (self._preference[job] - len(self._preference), job))

    def found_done(self, job: Job) -> None:
        """Note that all of a job's work was there already: how long the job took says nothing about the others."""
        self._total -= self._size(job)
        self._found_done.add(job)

    def end(self, outcome: Outcome) -> None:
        """Note how a job ended. A job that waits for a failed job is never run, and fails too."""
        self.outcomes[outcome.job] = outcome
        self._ended += self._size(outcome.job)
        self._on_outcome(outcome)
        self._sorter.done(outcome.job)
        self._find_ready()

    def progress(self, running: Mapping[Job, float]) -> Progress:
        """The progress of all jobs, given the done shares of the running jobs."""
        partly = sum(share * self._size(job) for job, share in running.items())
        return Progress(
            done=list(self.outcomes.values()),
            running={job.name: share for job, share in running.items()},
            waiting=len(self._preference) - len(self.outcomes) - len(running),
            share=(self._ended + partly) / self._total if self._total > 0 else 1.0,
            seconds=time.monotonic() - self._started,
        )

    def _size(self, job: Job) -> float:
        return 0.0 if job in self._found_done else job.size

    def _find_ready(self) -> None:
        for job in self._sorter.get_ready() if self._sorter.is_active() else ():
            failed = next((needed for needed in job.after if self.outcomes[needed].error is not None), None)
            if failed is None:
                heapq.heappush(self._ready, (self._preference[job], job))
            else:
                self.end(Outcome(job=job, error=f"not run, because {failed.name} failed"))


def _with_needed(jobs: Sequence[Job]) -> list[Job]:
    """The jobs and all that they wait for, each once, and what a job waits for before the job."""
    placed, opened, stack = dict[Job, None](), set[Job](), list(reversed(jobs))
    while stack:
        job = stack[-1]
        if job in placed or job in opened:  # a job that comes up opened has its needs placed, or waits for itself
            placed[stack.pop()] = None
        else:
            opened.add(job)
            stack += reversed(job.after)
    return list(placed)
