"""Commands run by several processes that work on one model, as torchrun starts them."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.multiprocessing as mp

PRELOADED = (
    "tests.many_processes", "tests.shared_model", "holdfast.cli.app", "holdfast.engine.session", "holdfast.runs.stages",
    "peft",
)  # fmt: skip
"""what every process needs"""

_PATIENCE = 900
"""seconds after which processes that wait for each other for ever are ended"""


@dataclass(frozen=True)
class Command:
    """A command line, and where it is stopped."""

    words: Sequence[str]
    stopped_after: int | None = None
    """the update after whose saved state the command is stopped; None: it runs to its end"""
    by: Literal["user", "system"] = "user"
    """who stops it: the user interrupts every process, and the system asks the last process alone"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    statuses: tuple[int, ...]
    """of each rank"""
    said: str
    """what all processes wrote to standard error"""
    printed: tuple[str, ...]
    """what each rank wrote to standard output"""

    @property
    def status(self) -> int:
        """Of rank 0."""
        return self.statuses[0]


def run(commands: Sequence[Command], processes: int, folder: Path, cache: Path) -> list[Ended]:
    """Run commands one after the other, each by all processes, which are started once and load torch once among them.

    Args:
        commands: what to run.
        processes: how many.
        folder: where what they say is put.
        cache: their cache.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (processes, port, commands, folder, cache)
    started = mp.start_processes(_process, arguments, processes, join=False, start_method="forkserver")  # type: ignore[no-untyped-call]
    deadline = time.monotonic() + _PATIENCE
    try:
        while not started.join(timeout=1):  # raises what one of them raised
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in started.processes:
            process.kill()
    by_rank = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    return [
        Ended(
            statuses=tuple(rank["status"] for rank in ranks),
            said="".join(rank["said"] for rank in ranks),
            printed=tuple(rank["printed"] for rank in ranks),
        )
        for ranks in zip(*by_rank, strict=True)
    ]


def _process(rank: int, processes: int, port: int, commands: Sequence[Command], folder: Path, cache: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        HOLDFAST_CACHE=str(cache),
    )  # fmt: skip
    torch.set_num_threads(1)
    learn_little()
    ended = []
    for command in commands:
        with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()) as printed:
            status = run_here(command)
        ended.append({"status": status, "said": said.getvalue(), "printed": printed.getvalue()})
    (folder / f"{rank}.json").write_text(json.dumps(ended))


def learn_little() -> None:
    """Try over four updates, not over hundreds, how well a model learns, wherever this evaluation is asked for by name."""
    from holdfast.core.presets import collect
    from holdfast.testing import small

    evaluations: Any = collect("holdfast.evals")
    evaluations["benign-learning"] = small(evaluations["benign-learning"])


def run_here(command: Command) -> int:
    """Run a command in this process; return its status."""
    from holdfast.campaign.all_ranks import run_on_all_ranks
    from holdfast.cli.app import main

    with pytest.MonkeyPatch.context() as patch, _stopped(command):
        patch.setattr("holdfast.campaign.run.run_jobs", run_on_all_ranks)  # one process has no workers here
        return main(command.words)


@contextmanager
def _stopped(command: Command) -> Iterator[None]:
    """Save a run's state after every update, and stop the process after one of them."""
    from holdfast.engine import walk
    from holdfast.engine.ranks import rank_of
    from holdfast.engine.run import Run

    save = Run.save

    def saved(self: Run, path: Path, model: Any, step: int, key: str) -> None:
        save(self, path, model, step, key)
        if step == command.stopped_after and command.by == "user":
            raise KeyboardInterrupt
        rank, ranks = rank_of()
        if step == command.stopped_after and rank == ranks - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        if command.stopped_after is not None:
            patch.setattr(walk, "SAVE_EVERY", 0.0)
            patch.setattr(Run, "save", saved)
        yield
