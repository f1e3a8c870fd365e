"""Run a graph of jobs in crash-isolated worker processes on this machine.

A worker is a fresh Python with one torch thread, reused from job to job. One that dies takes only its own job with it and
is replaced; all of them die with the coordinator.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from holdfast.core.memory import LESS, shortage
from holdfast.core.outside import load_same, loaded
from holdfast.core.reuse import hearing, tell
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Graph, Job, Outcome, Progress


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[Job, Outcome]:
    """Run all jobs in at most `workers` processes; a job whose dependency failed is not run and fails too.

    A job whose process died, killed or out of memory, is begun once more; what it had finished is on disk.

    Args:
        jobs: in order of preference among those that are ready.
        workers: the most processes at a time.
        on_outcome: called as each job ends.
        on_progress: called several times a second.
    """
    graph, pool, died = Graph(jobs, on_outcome), list[_Worker](), set[Job]()
    try:
        while graph.active:
            idle = [worker for worker in pool if worker.job is None]
            while idle or len(pool) < workers:
                job = graph.start()
                if job is None:
                    break
                if not idle:
                    pool.append(_Worker())
                    idle.append(pool[-1])
                idle.pop().start(job)
            busy = [worker for worker in pool if worker.job]
            for connection in wait([worker.connection for worker in busy], timeout=0.2):
                worker = next(worker for worker in busy if worker.connection is connection)
                outcome = worker.read()
                if not worker.alive:
                    pool.remove(worker)
                if outcome is not None and not worker.alive and outcome.job not in died:
                    died.add(outcome.job)
                    graph.again(outcome.job)
                elif outcome is not None:
                    graph.end(outcome)
            on_progress(graph.progress({worker.job: worker.share for worker in pool if worker.job}))
    finally:
        for worker in pool:
            worker.stop()
    return graph.outcomes


class _Worker:
    """The coordinator's end of one worker process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, loaded()), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.share = 0.0
        self.alive = True
        self._started = 0.0

    def start(self, job: Job) -> None:
        self.job, self.share, self._started = job, 0.0, time.monotonic()
        # A worker that died while idle shows when its end of the pipe is read, as any other death does.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((job.call, job.arguments))

    def read(self) -> Outcome | None:
        """Take one message; the outcome where it ends the job."""
        assert self.job is not None
        job, seconds = self.job, time.monotonic() - self._started
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.alive, self.job = False, None
            code = self.process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            message = f"its process died ({how}), perhaps for lack of memory: give fewer --workers, or {LESS}"
            return Outcome(job=job, error=message, seconds=seconds)
        if kind == "said":
            tell(content[0])
            return None
        if kind == "step":
            done, total = content
            self.share = done / total if total else 0.0
            return None
        self.job = None
        if kind == "result":
            return Outcome(job=job, result=content[0], seconds=seconds)
        return Outcome(job=job, error=content[0], details=content[1], seconds=seconds)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


@contextlib.contextmanager
def _one_thread() -> Any:
    """Start the children of this block with one thread each: more would compete for the same cores."""
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


def _serve(connection: Connection, plugins: Mapping[str, str]) -> None:
    """Run the loop of a worker: take a job, run the job, report its outcome; end with the coordinator.

    Args:
        connection: to the coordinator.
        plugins: what the coordinator has loaded from outside; jobs hold objects of such classes.
    """
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's; it stops its workers itself
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    last = 0.0

    def on_step(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 0.2:
            last = time.monotonic()
            connection.send(("step", done, total))

    missing = ""
    try:
        load_same(plugins)
    except HoldfastError as error:
        missing = str(error)
    with hearing(lambda sentence: connection.send(("said", sentence))):
        _work(connection, missing, on_step)


def _work(connection: Connection, missing: str, on_step: Callable[[int, int], None]) -> None:
    """Take jobs until the coordinator is gone.

    Args:
        connection: to the coordinator.
        missing: why no job can be run; empty: each can.
        on_step: reports the progress of a job.
    """
    while True:
        try:
            call, arguments = connection.recv()
        except EOFError:
            return
        except (AttributeError, ImportError) as error:
            missing = (
                missing or f"a worker process cannot load what the job is about ({error}); write its class into a file"
            )
        if missing:
            connection.send(("error", missing, ""))
            continue
        try:
            connection.send(("result", call(**arguments, on_step=on_step)))
        except Exception as error:  # a job's bug must not take the other jobs down
            if short := shortage(error):
                connection.send(("error", f"{short}; give fewer --workers, or {LESS}", ""))
            elif isinstance(error, HoldfastError):
                connection.send(("error", str(error), ""))
            else:
                message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
                connection.send(("error", message, traceback.format_exc()))


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
