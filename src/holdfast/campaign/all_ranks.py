"""Run a graph of jobs under torchrun: one job at a time, each on all processes of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from holdfast.core.types import HoldfastError
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Graph, Job, Outcome, Progress


def run_on_all_ranks(
    jobs: Sequence[Job],
    workers: Workers,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[Job, Outcome]:
    """Run all jobs one after the other, as rank 0.

    Args:
        jobs: in order of preference among those that are ready.
        workers: without effect: every job has all processes.
        on_outcome: called as each job ends.
        on_progress: called as a job goes on.

    Raises:
        HoldfastError: a job failed. The others would wait for processes that may wait in it.
    """
    graph = Graph(jobs, on_outcome)
    while (job := graph.start()) is not None:
        started = time.monotonic()

        def on_step(done: int, total: int, job: Job = job) -> None:
            on_progress(graph.progress({job: done / total if total else 0.0}))

        try:
            result = job.call(**job.arguments, on_step=on_step)
        except HoldfastError as error:
            graph.end(Outcome(job=job, error=str(error), seconds=time.monotonic() - started))
            raise
        graph.end(Outcome(job=job, result=result, seconds=time.monotonic() - started))
        on_progress(graph.progress({}))
    return graph.outcomes
