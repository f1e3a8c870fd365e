"""Jobs in worker processes: their order, their failures, and how workers die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest

from holdfast.attacks.base import Attack
from holdfast.core.outside import load_plugins
from holdfast.core.presets import collect, describe
from holdfast.core.reuse import hearing, say_reused
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.jobs.run import run_jobs
from tests.outside import write_plugin

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Trace:
    """Where and when a job ran."""

    pid: int
    threads: int
    environment: str | None
    start: float
    end: float


def trace(on_step: OnStep) -> Trace:
    import torch

    start = time.monotonic()
    return Trace(os.getpid(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), start, time.monotonic())


def meet(folder: Path, mine: str, other: str, on_step: OnStep) -> Trace:
    """Wait for a job that can only be running at the same time."""
    start = time.monotonic()
    (folder / mine).touch()
    while not (folder / other).exists():
        if time.monotonic() - start > 60:
            raise TimeoutError(f"{other} never came")
        time.sleep(0.01)
    return trace(on_step)


def refuse(on_step: OnStep) -> NoReturn:
    raise HoldfastError("this is refused; give another --out")


def stumble(on_step: OnStep) -> NoReturn:
    raise ValueError("the first line\nthe second line")


def hand_over_what_cannot_be_sent(on_step: OnStep) -> Any:
    return lambda: None


def four_steps(on_step: OnStep) -> None:
    for done in range(1, 5):
        time.sleep(0.3)  # more than the time between two reports
        on_step(done, 4)


def die(on_step: OnStep) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_first(marker: Path, on_step: OnStep) -> str:
    """Killed the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def hang(on_step: OnStep) -> NoReturn:
    print("at work", flush=True)
    time.sleep(600)
    raise AssertionError


def coordinate() -> None:
    """A coordinator whose only worker never ends."""
    run_jobs([Job(name="hang", call=hang)], workers=1)


def describe_and_say(attack: Attack, on_step: OnStep) -> dict[str, Any]:
    say_reused("what was there")
    return describe(attack)


@dataclass
class Seen:
    """All that a run of jobs showed."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    """in which the jobs ended"""
    progress: list[Progress] = field(default_factory=list)
    running: list[dict[str, float]] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    """how many there were, each time that progress was shown"""
    said: list[str] = field(default_factory=list)
    """that something was reused"""
    described: dict[str, Any] = field(default_factory=dict)
    """the plug-in from outside, in this process"""

    def traces(self) -> dict[str, Trace]:
        return {name: held.result for name, held in self.outcomes.items() if isinstance(held.result, Trace)}


def observe(jobs: list[Job], workers: int, on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> Seen:
    seen = Seen()

    def ended(outcome: Outcome) -> None:
        seen.order.append(outcome.job.name)
        on_outcome(outcome)

    def shown(progress: Progress) -> None:
        seen.progress.append(progress)
        seen.running.append(progress.running)
        seen.processes.append(len(multiprocessing.active_children()))

    with hearing(seen.said.append):
        outcomes = run_jobs(jobs, workers, ended, shown)
    seen.outcomes = {job.name: outcome for job, outcome in outcomes.items()}
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Two workers through jobs of every kind: starting a worker takes seconds, so the tests share them."""
    folder = tmp_path_factory.mktemp("meeting")

    def meeting(name: str, mine: str, other: str) -> Job:
        return Job(name=name, call=meet, arguments={"folder": folder, "mine": mine, "other": other})

    first, refused, dies = (
        Job(name=name, call=call) for name, call in (("first", trace), ("refused", refuse), ("dies", die))
    )
    second = Job(name="second", call=trace, after=(first,))
    after_refused = Job(name="after refused", call=trace, after=(refused,))
    left, right = (
        meeting("left again", "left again", "right again"),
        meeting("right again", "right again", "left again"),
    )
    load_plugins(str(write_plugin(folder / "shifts.py")))
    descend = collect("holdfast.attacks")["descend"]
    seen = observe(
        [
            second,  # the dependant comes first in the list, not in time
            meeting("left", "left", "right"),
            meeting("right", "right", "left"),
            first,
            Job(name="third", call=trace, after=(first, second)),
            refused,
            after_refused,
            Job(name="after that", call=trace, after=(first, after_refused)),
            Job(name="stumbles", call=stumble),
            Job(name="cannot be sent", call=hand_over_what_cannot_be_sent),
            Job(name="steps", call=four_steps, size=5.0),
            dies,
            Job(name="after the dead", call=trace, after=(dies,)),
            left,
            right,
            Job(name="last", call=trace, after=(left, right)),
            Job(name="outside", call=describe_and_say, arguments={"attack": descend}),
        ],
        workers=2,
    )
    seen.described = describe(descend)
    load_plugins()
    return seen


def test_a_job_starts_when_those_it_depends_on_have_ended(seen: Seen) -> None:
    traces = seen.traces()
    assert traces["first"].end <= traces["second"].start
    assert traces["second"].end <= traces["third"].start
    assert max(traces["left again"].end, traces["right again"].end) <= traces["last"].start


def test_every_job_has_one_outcome_and_those_without_fault_succeed(seen: Seen) -> None:
    assert sorted(seen.order) == sorted(seen.outcomes)
    assert all(name == outcome.job.name for name, outcome in seen.outcomes.items())
    faultless = {"first", "second", "third", "left", "right", "steps", "left again", "right again", "last", "outside"}
    assert {name for name, outcome in seen.outcomes.items() if outcome.error is None} == faultless


def test_a_worker_has_the_plug_ins_from_outside_and_its_words_reach_the_coordinator(seen: Seen) -> None:
    assert seen.outcomes["outside"].result == seen.described
    assert seen.described["class"] == "Descend"
    assert seen.said == ["reused from the cache: what was there"]


def test_what_depends_on_a_failure_is_not_run_and_says_why(seen: Seen) -> None:
    errors = {name: outcome.error for name, outcome in seen.outcomes.items()}
    assert errors["after refused"] == "not run, because refused failed"
    assert errors["after that"] == "not run, because after refused failed"
    assert errors["after the dead"] == "not run, because dies failed"


def test_a_sentence_for_the_user_arrives_as_it_is(seen: Seen) -> None:
    outcome = seen.outcomes["refused"]
    assert outcome.error == "this is refused; give another --out"
    assert outcome.details == ""


def test_a_bug_arrives_in_one_line_with_its_traceback_beside(seen: Seen) -> None:
    outcome = seen.outcomes["stumbles"]
    assert outcome.error == "ValueError: the first line"
    assert outcome.details.startswith("Traceback")
    assert "in stumble" in outcome.details
    assert "the second line" in outcome.details
    unsent = seen.outcomes["cannot be sent"]
    assert unsent.error is not None
    assert "lambda" in unsent.error
    assert "Traceback" in unsent.details


def test_a_killed_worker_takes_only_its_own_job(seen: Seen) -> None:
    said = seen.outcomes["dies"].error or ""
    assert said.startswith("its process died (signal 9), perhaps for lack of memory: give fewer --workers")
    assert seen.outcomes["dies"].seconds > 0
    # These two can only have ended if there were two workers again.
    assert seen.outcomes["left again"].error is None
    assert seen.outcomes["right again"].error is None


def test_a_job_whose_process_dies_is_begun_once_more(tmp_path: Path) -> None:
    job = Job(name="once", call=die_at_first, arguments={"marker": tmp_path / "marker"})
    assert run_jobs([job], 1)[job].result == "done"


def test_two_workers_are_reused_and_the_dead_one_replaced(seen: Seen) -> None:
    traces = seen.traces()
    assert traces["left"].pid != traces["right"].pid
    assert traces["left again"].pid != traces["right again"].pid
    assert len({held.pid for held in traces.values()}) == 3  # the two, and the dead one's successor
    assert os.getpid() not in {held.pid for held in traces.values()}
    assert max(seen.processes) == 2


def test_a_worker_has_one_thread_and_the_coordinator_keeps_its_environment(seen: Seen) -> None:
    assert {held.threads for held in seen.traces().values()} == {1}
    assert {held.environment for held in seen.traces().values()} == {"1"}


def test_progress_grows_to_all_of_it(seen: Seen) -> None:
    shares = [progress.share for progress in seen.progress]
    assert all(before <= after + 1e-9 for before, after in pairwise(shares))
    assert shares[0] == 0.0
    assert shares[-1] == pytest.approx(1.0)
    last = seen.progress[-1]
    assert len(last.done) == len(seen.outcomes)
    assert (last.running, last.waiting) == ({}, 0)
    assert last.seconds_left == pytest.approx(0.0)
    within = [running["steps"] for running in seen.running if "steps" in running]
    assert within[0] == 0.0
    assert {0.25, 0.5, 0.75} <= set(within)


def test_no_estimate_before_there_is_ground_for_one() -> None:
    assert Progress(share=0.0, seconds=9.0).seconds_left is None
    assert Progress(share=0.25, seconds=9.0).seconds_left == pytest.approx(27.0)


def test_no_worker_is_left_behind(seen: Seen) -> None:
    assert not multiprocessing.active_children()


def test_jobs_run_in_the_order_given_and_a_worker_that_died_idle_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    killed: list[int] = []

    def kill_once(outcome: Outcome) -> None:
        if outcome.job.name == "b":
            killed.append(outcome.result.pid)
            os.kill(outcome.result.pid, signal.SIGKILL)

    seen = observe([Job(name=name, call=trace) for name in "bacd"], 1, kill_once)
    # The job that met the dead process is begun once more, in another.
    assert seen.order == list("bacd")
    assert all(outcome.error is None for outcome in seen.outcomes.values())
    assert seen.traces()["a"].pid == seen.traces()["c"].pid == seen.traces()["d"].pid != killed[0]
    assert {held.environment for held in seen.traces().values()} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_coordinator_that_stops_takes_its_workers_with_it() -> None:
    def stop(progress: Progress) -> NoReturn:
        assert multiprocessing.active_children()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job(name="hang", call=hang)], workers=1, on_progress=stop)
    assert not multiprocessing.active_children()


def test_workers_die_with_a_killed_coordinator() -> None:
    command = [sys.executable, "-c", "from tests.jobs.test_local import coordinate; coordinate()"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == "at work\n"
        coordinator.kill()
        # The worker has this pipe too: it ends when nobody is left who holds it.
        coordinator.communicate(timeout=30)
