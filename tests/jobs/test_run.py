"""The coordinator and workers that come in at its door, as those of a cluster do."""

from __future__ import annotations

import os
import signal
import socket
import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from holdfast.core.memory import LESS
from holdfast.core.reuse import hearing
from holdfast.core.stopping import Stopped, listening
from holdfast.core.types import HoldfastError
from holdfast.jobs.door import Door, work_at
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.jobs.run import run_jobs
from tests.clusters import wait_until
from tests.jobs.plain import Nearby, be_stopped, count, crowd, die, rest, reuse, run_out, where


@pytest.fixture(autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find an empty torch first, and so start at once."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "torch.py").write_text("def set_num_threads(count): pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def test_workers_take_over_the_place_and_the_variables_of_their_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOLDFAST_PLAIN", "here")
    dies = Job(name="dies", call=die)
    jobs = [dies, Job(name="after", call=where, after=(dies,)), *(Job(name=f"{n}", call=where) for n in range(4))]
    outcomes = {job.name: outcome for job, outcome in run_jobs(jobs, Nearby()).items()}
    assert outcomes["dies"].error == "it ended with status -9"
    assert outcomes["after"].error == "not run, because dies failed"
    results = [outcomes[f"{n}"].result for n in range(4)]
    assert {result[1:] for result in results} == {(str(tmp_path), "here")}
    assert os.getpid() not in {result[0] for result in results}


def test_a_worker_that_the_system_stops_costs_its_job_no_attempt(tmp_path: Path) -> None:
    file, stopped = tmp_path / "count", []
    job = Job(name="counts", call=count, arguments={"file": file, "to": 40})

    def stop_once(progress: Progress) -> None:
        if not stopped and progress.running.get("counts", 0.0) > 0.1:
            stopped.append(1)
            [worker] = [int(path.name) for path in Path("/proc").iterdir() if is_worker(path)]
            os.kill(worker, signal.SIGTERM)

    assert run_jobs([job], Nearby(1), on_progress=stop_once)[job].error is None
    assert stopped == [1]


def test_a_job_whose_worker_is_stopped_again_and_again_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.jobs.run._STOPS", 3)
    job = Job(name="stops", call=be_stopped)
    error = run_jobs([job], Nearby(1))[job].error or ""
    assert error.startswith("the system stopped its process 3 times; give more time")


@pytest.mark.parametrize(("part", "share"), [(True, 0.75), (False, 0.0)])
def test_only_a_job_that_reuses_everything_counts_nowhere_in_the_time_left(part: bool, share: float) -> None:
    first = Job(name="reuses", call=reuse, arguments={"part": part}, size=3.0)
    shares = set[float]()

    def see(progress: Progress) -> None:
        if "rest" in progress.running:
            shares.add(progress.share)

    with hearing(lambda sentence: None):
        run_jobs([first, Job(name="rest", call=rest, after=(first,), size=1.0)], Nearby(1), on_progress=see)
    assert shares == {share}


def test_memory_that_runs_out_in_a_worker_is_a_sentence_that_names_what_takes_less() -> None:
    starts = {"host": "memory ran out", "device": "the device's memory ran out"}
    jobs = {Job(name=where, call=run_out, arguments={"where": where}): start for where, start in starts.items()}
    outcomes = run_jobs(list(jobs), 1)
    assert {job: outcomes[job].error for job in jobs} == {
        job: f"{start}; give fewer --workers, or {LESS}" for job, start in jobs.items()
    }
    assert [outcomes[job].details for job in jobs] == ["", ""]


def test_a_job_for_which_memory_ran_out_begins_again_beside_fewer(tmp_path: Path) -> None:
    jobs = [Job(name=f"{n}", call=crowd, arguments={"folder": tmp_path, "most": 2, "shortages": 2}) for n in range(6)]
    said: list[str] = []
    with hearing(said.append):
        outcomes = run_jobs(jobs, 4)
    assert [outcomes[job].error for job in jobs] == [None] * 6
    assert [sentence.rpartition("; ")[2] for sentence in said] == [
        f"from now on at most {most} at a time run here" for most in (3, 2)
    ]
    assert said[0].startswith("memory ran out in ")


def test_a_job_that_needs_more_memory_than_there_is_fails_and_the_others_end(tmp_path: Path) -> None:
    large = Job(name="large", call=crowd, arguments={"folder": tmp_path, "most": 0, "shortages": 0})
    small = [Job(name=f"{n}", call=crowd, arguments={"folder": tmp_path, "most": 9, "shortages": 1}) for n in range(6)]
    with hearing(lambda sentence: None):
        outcomes = run_jobs([large, *small], 4)
    assert (outcomes[large].error or "").startswith("memory ran out; give fewer --workers")
    assert [outcomes[job].error for job in small] == [None] * 6


def test_where_every_worker_has_memory_of_its_own_a_shortage_ends_the_job(tmp_path: Path) -> None:
    large = Job(name="large", call=crowd, arguments={"folder": tmp_path, "most": 0, "shortages": 0})
    said: list[str] = []
    with hearing(said.append):
        outcomes = run_jobs([large, Job(name="beside", call=where)], Nearby())
    assert (outcomes[large].error or "").startswith("memory ran out")
    assert said == []


def test_a_coordinator_that_the_system_stops_lets_its_workers_save(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    jobs = [Job(name=file.name, call=count, arguments={"file": file, "to": 10**6}) for file in files]
    ended: list[Outcome] = []

    def stop(progress: Progress) -> None:
        if len(progress.running) == 2 and all(progress.running.values()):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped), listening():
        run_jobs(jobs, Nearby(), ended.append, stop)
    assert all(int(file.read_text()) > 0 for file in files)
    assert ended == []


def test_who_comes_too_late_is_sent_away() -> None:
    door = Door("localhost")
    with Client(("localhost", door.port), authkey=door.key) as worker:
        worker.send("7")
        wait_until(lambda: not door._came.empty(), "an arrival", 20)
        door.close()
        with pytest.raises(EOFError):
            worker.recv()


def test_who_has_not_the_key_stays_outside() -> None:
    door = Door("localhost")
    try:
        with pytest.raises(AuthenticationError):
            Client(("localhost", door.port), authkey=b"another key")
        silent = socket.create_connection(("localhost", door.port))  # keeps nobody waiting
        with Client(("localhost", door.port), authkey=door.key) as worker:
            worker.send("7")
            arrived = []
            wait_until(lambda: bool(arrived.extend(door.arrivals()) or arrived), "an arrival", 20)
        assert [arrival.name for arrival in arrived] == ["7"]
        silent.close()
    finally:
        door.close()
    with pytest.raises(HoldfastError, match=r"localhost, port \d+, cannot be reached from .* --cluster host="):
        work_at("localhost", door.port, door.key, "8")


def is_worker(process: Path) -> bool:
    """Whether a process is a worker of this one, and not what multiprocessing keeps beside workers."""
    try:
        command = (process / "cmdline").read_bytes()
        if b"resource_tracker" in command or b"forkserver" in command:
            return False
        status = (process / "stat").read_text().rpartition(")")[2].split()
        return process.name.isdigit() and int(status[1]) == os.getpid() and status[0] != "Z"
    except OSError:
        return False


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds its workers in /proc")
