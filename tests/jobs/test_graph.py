"""The graph of jobs: what may start, and what a failure takes with it."""

from __future__ import annotations

from graphlib import CycleError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.jobs.graph import Graph, Job, Outcome


def nothing() -> None:
    """A job's call; nobody calls it here."""


def run(graph: Graph, failing: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """End every job as soon as it may start; the names of those that were started, in order."""
    started = []
    while graph.active:
        job = graph.start()
        assert job is not None, "something may start while nothing runs"
        started.append(job.name)
        graph.end(Outcome(job=job, error="broken" if job.name in failing else None))
    return started


def test_jobs_start_in_the_order_given_and_what_they_wait_for_just_before_them() -> None:
    last = Job(name="last", call=nothing)
    first = Job(name="first", call=nothing, after=(last,))
    assert run(Graph([first, Job(name="free", call=nothing), last])) == ["last", "first", "free"]
    unlisted = Job(name="unlisted", call=nothing)
    trial = Job(name="trial", call=nothing, after=(unlisted,))
    assert run(Graph([trial, Job(name="model", call=nothing)])) == ["unlisted", "trial", "model"]


def test_a_job_that_another_waits_for_is_part_of_the_graph() -> None:
    assert run(Graph([Job(name="b", call=nothing, after=(Job(name="a", call=nothing),))])) == ["a", "b"]


def test_two_jobs_of_one_name_are_two_jobs() -> None:
    graph = Graph([Job(name="a", call=nothing), Job(name="a", call=nothing)])
    assert run(graph) == ["a", "a"]
    assert len(graph.outcomes) == 2


def test_a_failure_takes_what_waits_for_it_and_nothing_else() -> None:
    a = Job(name="a", call=nothing)
    b = Job(name="b", call=nothing, after=(a,))
    c = Job(name="c", call=nothing, after=(b,))
    graph = Graph([c, b, a, Job(name="d", call=nothing)])
    assert run(graph, failing={"a"}) == ["a", "d"]
    assert graph.outcomes[b].error == "not run, because a failed"
    assert graph.outcomes[c].error == "not run, because b failed"


def test_a_job_that_is_begun_again_comes_first() -> None:
    graph = Graph([Job(name=name, call=nothing) for name in "ab"])
    job = graph.start()
    assert job is not None
    graph.again(job)
    assert run(graph) == ["a", "b"]


def test_what_is_found_done_says_nothing_about_the_time_left() -> None:
    jobs = [Job(name=name, call=nothing, size=size) for name, size in (("kept", 6.0), ("made", 1.0), ("more", 3.0))]
    graph = Graph(jobs)
    graph.found_done(jobs[0])
    graph.found_done(jobs[0])
    assert graph.progress({jobs[0]: 0.5, jobs[1]: 0.5}).share == pytest.approx(0.5 / 4)
    for job in jobs[:2]:
        graph.end(Outcome(job=job))
    assert graph.progress({}).share == pytest.approx(1 / 4)
    alone = Graph(jobs[:1])
    alone.found_done(jobs[0])
    assert alone.progress({}).share == 1.0


def test_jobs_that_wait_for_each_other_are_refused() -> None:
    a = Job(name="a", call=nothing)
    b = Job(name="b", call=nothing, after=(a,))
    object.__setattr__(a, "after", (b,))
    with pytest.raises(CycleError):
        Graph([a])


@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=12), st.sets(st.integers(0, 11)))
def test_every_job_ends_once_and_after_what_it_waits_for(edges: list[set[int]], failing: set[int]) -> None:
    jobs: list[Job] = []
    for index, needs in enumerate(edges):
        after = tuple(jobs[need] for need in sorted(needs) if need < index)
        jobs.append(Job(name=str(index), call=nothing, after=after, size=index + 1.0))
    ended: list[Job] = []
    graph = Graph(jobs[::-1], lambda outcome: ended.append(outcome.job))
    started = run(graph, {str(index) for index in failing})
    assert sorted(ended, key=jobs.index) == jobs
    for job in jobs:
        assert all(ended.index(needed) < ended.index(job) for needed in job.after)
        fine = all(graph.outcomes[needed].error is None for needed in job.after)
        assert (job.name in started) == fine
    assert graph.progress({}).share == pytest.approx(1.0)
