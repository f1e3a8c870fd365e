"""The coordinator: hands the jobs of a graph to workers, wherever the workers are.

A worker that dies takes only its own job with it and is replaced. A job whose worker died is begun once more; what the job had
finished is on disk. A job for which memory ran out beside others is begun again beside fewer. All workers end with the
coordinator.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from selectors import EVENT_READ, DefaultSelector

from holdfast.core.reuse import tell, tells_of_reuse
from holdfast.core.stopping import Stopped, saving
from holdfast.jobs.executor import Arrival, Executor, Place, Workers
from holdfast.jobs.graph import Graph, Job, Outcome, Progress
from holdfast.jobs.local import Local
from holdfast.jobs.worker import END, STOP, packed, setting

_SHOW_EVERY = 0.1
"""seconds between two displays of progress, at least"""

_STOPS = 10
"""how often a job is begun again because the system stopped its worker: each time it may get as far as before, and no further"""


_SHORTAGES = 3
"""how often a job is begun again because memory ran out, each time beside fewer others; one that is too large alone fails then"""


def run_jobs(
    jobs: Sequence[Job],
    workers: Workers,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[Job, Outcome]:
    """Run all jobs; a job whose dependency failed is not run and fails too.

    Args:
        jobs: in order of preference among those that are ready.
        workers: the most processes of this machine at a time, or an executor that has its workers elsewhere.
        on_outcome: called as each job ends.
        on_progress: called several times a second.

    Raises:
        HoldfastError: the executor has no workers to give.
        Stopped: the system stopped this process; every worker has saved what it could.
    """
    executor = Local(workers) if isinstance(workers, int) else workers
    graph, place = Graph(jobs, on_outcome), executor.open()
    crew = _Crew(graph, executor, place)
    shown = 0.0
    try:
        with saving() as asked_to_stop:  # no signal comes into the middle of a message
            while graph.active:
                if asked_to_stop():
                    raise Stopped
                crew.hire()
                crew.hand_out()
                crew.hear(0.2)
                if not graph.active or time.monotonic() - shown > _SHOW_EVERY:
                    shown = time.monotonic()
                    on_progress(graph.progress(crew.shares()))
    except Stopped:
        crew.stop()
        raise
    finally:
        crew.close()
        place.close()
    return graph.outcomes


class _Worker:
    """The coordinator's end of one worker."""

    def __init__(self, arrival: Arrival) -> None:
        self.connection: Connection = arrival.connection
        self.name = arrival.name
        self.job: Job | None = None
        self.share = 0.0
        self.reuses = False
        """whether the job has said that it uses a result of an earlier run"""
        self._started = 0.0

    def start(self, job: Job) -> None:
        self.job, self.share, self.reuses, self._started = job, 0.0, False, time.monotonic()
        self.send(packed(job.call, job.arguments))

    def send(self, content: bytes) -> None:
        # A worker that is gone shows when its connection is read.
        with contextlib.suppress(OSError):
            self.connection.send_bytes(content)

    @property
    def seconds(self) -> float:
        """The seconds since the job was started."""
        return time.monotonic() - self._started


class _Crew:
    """The workers that are there."""

    def __init__(self, graph: Graph, executor: Executor, place: Place) -> None:
        self._graph, self._executor, self._place = graph, executor, place
        self._setting = setting(executor.threads, executor.workers)
        self._selector = DefaultSelector()
        self._idle: list[_Worker] = []
        self._busy: dict[Job, _Worker] = {}
        self._died: set[Job] = set()
        self._stopped = Counter[Job]()
        self._short = Counter[Job]()
        self._most = executor.workers
        """workers at a time; fewer, once memory ran out"""

    def hire(self) -> None:
        """Begin the workers that have something to do, and welcome those that have come."""
        wanted = min(self._most, len(self._busy) + self._graph.ready)
        missing = wanted - len(self._busy) - len(self._idle)
        if missing > 0 and (missing := missing - self._place.coming()) > 0:
            self._place.begin(missing)
        for arrival in self._place.arrivals():
            worker = _Worker(arrival)
            with contextlib.suppress(OSError):
                worker.connection.send(self._setting)
            self._selector.register(worker.connection, EVENT_READ, worker)
            self._idle.append(worker)

    def hand_out(self) -> None:
        """Give every idle worker a job, as far as there are jobs that may start."""
        while self._idle and (job := self._graph.start()) is not None:
            worker = self._idle.pop()
            self._busy[job] = worker
            worker.start(job)

    def hear(self, seconds: float) -> None:
        """Wait for messages, and answer each."""
        for key, _ in self._selector.select(seconds):
            self._answer(key.data)

    def shares(self) -> dict[Job, float]:
        """The done share of every running job."""
        return {job: worker.share for job, worker in self._busy.items()}

    def stop(self) -> None:
        """End every running job at its next step, with its state saved."""
        for worker in self._busy.values():
            worker.send(STOP)
        while self._busy:
            for key, _ in self._selector.select(1.0):
                worker = key.data
                with contextlib.suppress(EOFError, OSError):
                    if worker.connection.recv()[0] in ("said", "step"):
                        continue
                self._leave(worker)

    def close(self) -> None:
        """Let every worker go; one that still runs a job ends at once, since its connection does."""
        for worker in (*self._idle, *self._busy.values()):
            if worker.job is None:
                worker.send(END)
            worker.connection.close()
        self._selector.close()

    def _answer(self, worker: _Worker) -> None:
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            kind, content = "died", []
        job = worker.job
        if kind == "said":
            tell(content[0])
            worker.reuses = worker.reuses or tells_of_reuse(content[0])
        elif kind == "step":
            done, total = content
            worker.share = done / total if total else 0.0
        elif kind in ("died", "stopped"):
            self._leave(worker)
            fate = self._place.fate(worker.name)
            if job is None:
                return
            if kind == "died":
                again = job not in self._died
                self._died.add(job)
                error = fate
            else:
                self._stopped[job] += 1
                again = self._stopped[job] < _STOPS
                error = f"the system stopped its process {_STOPS} times; give more time, or --resumable-attacks"
            if again:
                self._graph.again(job)
            else:
                self._graph.end(Outcome(job=job, error=error, seconds=worker.seconds))
        elif kind == "short" and job is not None and self._may_try_again(job):
            self._try_beside_fewer(worker, job, content[0].partition(";")[0])
        else:
            assert job is not None
            del self._busy[job]
            worker.job = None
            self._idle.append(worker)
            if kind == "short":
                self._most = self._executor.workers  # the job was too large, and not the crowd
            if worker.reuses and not worker.share:  # a job that reuses a part reports the steps of the rest
                self._graph.found_done(job)
            if kind == "result":
                outcome = Outcome(job=job, result=content[0], seconds=worker.seconds)
            else:
                outcome = Outcome(job=job, error=content[0], details=content[1], seconds=worker.seconds)
            self._graph.end(outcome)

    def _may_try_again(self, job: Job) -> bool:
        return self._executor.shares_memory and len(self._busy) > 1 and self._short[job] < _SHORTAGES

    def _try_beside_fewer(self, worker: _Worker, job: Job, what: str) -> None:
        """Begin a job again once another has ended, with one worker less. Workers without a job go: they keep memory too."""
        self._short[job] += 1
        self._most = len(self._busy) - 1
        for each in (worker, *self._idle):
            self._leave(each)
        self._graph.again(job)
        tell(f"{what} in {job.name}, which begins again; from now on at most {self._most} at a time run here")

    def _leave(self, worker: _Worker) -> None:
        self._selector.unregister(worker.connection)
        worker.connection.close()
        if worker.job is None:
            self._idle.remove(worker)
        else:
            del self._busy[worker.job]
