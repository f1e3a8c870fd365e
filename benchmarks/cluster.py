"""How many cells an hour a coordinator gets through with so many workers: a real coordinator, a real graph, fake cells.

python -m benchmarks.cluster [runs/demo] [--cells 10000] [--workers 1,10,100,1000] [--seconds 0] [--profile]

With the folder of a finished demo, the campaign has the demo's models, the attacks of standard-large, and as many seeds as make
up the cells. The coordinator is `run_campaign`, as an audit calls it. Without a folder, the coordinator is `run_jobs` alone, with
as many jobs in a graph of the same form.

One other process has all workers. Every worker has its own connection and speaks as a worker does, reports of progress included.
A cell only waits. In a campaign the cell also writes a record as long as a real one. `--profile` says where the coordinator's
time goes.

Processor seconds of the coordinator are printed beside the wall time, since they tell the limit on a busy machine too.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import multiprocessing
import os
import pstats
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import TYPE_CHECKING

from holdfast.jobs.door import Door
from holdfast.jobs.executor import Arrival, Place
from holdfast.jobs.graph import Job, Outcome
from holdfast.jobs.run import run_jobs
from holdfast.jobs.worker import END, STOP

if TYPE_CHECKING:
    from holdfast.campaign.cells import Campaign, Cell

MODELS = {
    "testbed/model": "undefended",
    "models/random-mapping": "reference",
    "models/tar": "defended",
    "testbed/never_exposed": "never-exposed",
}


def campaign(demo: Path, cells: int) -> Campaign:
    """About so many cells."""
    from holdfast.campaign.cells import Campaign, Model
    from holdfast.runs.suites import attacks_of

    attacks = attacks_of("standard-large")
    return Campaign(
        models=tuple(Model(path=demo / place, role=role) for place, role in MODELS.items()),  # type: ignore[arg-type]
        domain=demo / "testbed",
        attacks=attacks,
        seeds=tuple(range(max(1, round(cells / (len(MODELS) * len(attacks)))))),
        base=str(demo / "testbed" / "model"),
    )


def write_fake(cell: Cell, out: Path) -> None:
    """Write a record as long as a real one: every evaluation at every milestone."""
    from holdfast.core.presets import describe
    from holdfast.core.records import CellResult, Record, cell_path

    key = cell.id
    CellResult(
        cell=key, model=cell.model.label, model_digest="", attack=cell.attack_name, seed=cell.seed, status="finished",
        attack_config=describe(cell.attack) if cell.attack else {}, milestones=list(cell.milestones),
        records=[
            Record(
                cell=key, step=step, evaluation=name, measures="hazard" if name == "hazard" else "ability", metric="accuracy",
                value=0.5, stderr=0.01, n=100, chance=0.25,
            )
            for step in cell.milestones
            for name, _ in cell.evaluations
        ],
    ).write(cell_path(out, key))  # fmt: skip


def all_workers(host: str, port: int, key: bytes, count: int, seconds: float) -> None:
    """Be so many workers, each with a connection of its own; a cell takes so many seconds of waiting."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    selector, due, every = DefaultSelector(), list[tuple[float, int, Connection, tuple[object, ...]]](), 0.2
    number = 0
    for name in range(count):
        connection = Connection(socket.create_connection((host, port)).detach())
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
        connection.send(str(name))
        selector.register(connection, EVENT_READ)
    welcomed = set[Connection]()
    while selector.get_map():
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, _, connection, message = heapq.heappop(due)
            connection.send(message)
        for selected, _ in selector.select(max(0.0, due[0][0] - now) if due else None):
            connection = selected.fileobj  # type: ignore[assignment]
            try:
                content = connection.recv_bytes()
            except (EOFError, OSError):
                selector.unregister(connection)
                continue
            if connection not in welcomed:
                welcomed.add(connection)
                every = ForkingPickler.loads(content).every
            elif content in (END, STOP):
                selector.unregister(connection)
            else:
                _, arguments = ForkingPickler.loads(content)
                if "cell" in arguments:
                    write_fake(arguments["cell"], arguments["out"])
                reports = int(seconds / every)
                for report in range(1, reports + 1):
                    heapq.heappush(due, (now + report * every, number, connection, ("step", report, reports + 1)))
                    number += 1
                heapq.heappush(due, (now + seconds, number, connection, ("result", "")))
                number += 1


@dataclass(frozen=True)
class Simulated:
    """An executor whose workers are all in one other process."""

    workers: int
    seconds: float
    threads: int = 1

    def open(self) -> Place:
        return _Simulated(self)


class _Simulated:
    def __init__(self, settings: Simulated) -> None:
        self._door, self._settings, self._begun = Door("localhost"), settings, 0
        self._came = 0
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def begin(self, count: int) -> None:
        arguments = (self._door.host, self._door.port, self._door.key, count, self._settings.seconds)
        process = multiprocessing.get_context("fork").Process(target=all_workers, args=arguments, daemon=True)
        process.start()
        self._processes.append(process)
        self._begun += count

    def arrivals(self) -> list[Arrival]:
        came = self._door.arrivals()
        self._came += len(came)
        return came

    def coming(self) -> int:
        return self._begun - self._came

    def fate(self, name: str) -> str:
        return "it is gone"

    def close(self) -> None:
        self._door.close()
        for process in self._processes:
            process.kill()
            process.join()


def nothing() -> None:
    """A job of a graph without a campaign."""


def graph(cells: int) -> list[Job]:
    """A control that most others wait for, as in a campaign."""
    control = Job(name="control", call=nothing)
    return [control, *(Job(name=f"cell {n}", call=nothing, after=(control,)) for n in range(cells - 1))]


def measure(demo: Path | None, cells: int, executor: Simulated, profile: bool) -> None:
    out, profiler = Path(tempfile.mkdtemp(prefix="holdfast-cluster-")), cProfile.Profile()

    def run() -> Sequence[Outcome]:
        if demo is None:
            return list(run_jobs(graph(cells), executor).values())
        from holdfast.campaign.run import run_campaign

        return run_campaign(campaign(demo, cells), out / "campaign", executor)

    try:
        wall, processor = time.monotonic(), time.process_time()
        if profile:
            profiler.enable()
        outcomes = run()
        profiler.disable()
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        assert all(outcome.error is None for outcome in outcomes)
        count = len(outcomes)
        ideal = executor.workers * 3600 / executor.seconds if executor.seconds else float("inf")
        print(
            f"{executor.workers:7} {count:7} {wall:8.1f} {3600 * count / wall:12,.0f} {ideal:12,.0f} {processor:12.2f} "
            f"{1000 * processor / count:8.2f} {3600 * count / processor:14,.0f}",
            flush=True,
        )
        if demo is not None:
            again = time.process_time()
            run()
            print(f"{'':7} the same command again: {time.process_time() - again:.2f} processor seconds", flush=True)
    finally:
        shutil.rmtree(out)
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(35)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, nargs="?")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--workers", default="1,10,100,1000")
    parser.add_argument("--seconds", type=float, default=0.0, help="that a cell takes")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; a cell takes {given.seconds} s")
    print("workers   cells   wall s   cells/hour   at most/h  processor s  ms/cell  limit cells/h")
    for workers in map(int, given.workers.split(",")):
        measure(given.demo, given.cells, Simulated(workers, given.seconds), given.profile)


if __name__ == "__main__":
    main()
