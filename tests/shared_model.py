"""Functions for the tests of jobs on several processes, which import this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from holdfast.core.stopping import saving
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.engine.ranks import anywhere, rank_of, totals


def add(number: int, on_step: Callable[[int, int], None] = lambda done, total: None) -> tuple[float, int, str]:
    """The sum over ranks of number and rank; threads and a variable of rank 0."""
    on_step(1, 2)
    time.sleep(0.5)
    [total] = totals([number + rank_of()[0]])
    return total, torch.get_num_threads(), os.environ["LOCAL_WORLD_SIZE"]


def refuse() -> None:
    totals([1.0])
    raise HoldfastError(f"no {rank_of()[1]}")


def diverge() -> None:
    raise NonFinite("the loss became nan")


def stumble_on_second() -> None:
    """Fail on rank 1, while rank 0 waits for rank 1."""
    if rank_of()[0] == 1:
        raise ValueError("only here")
    totals([1.0])


def die(rank: int, folder: Path) -> None:
    """Kill a rank, while the other waits for the dead rank or works; count the attempts in a folder."""
    (folder / f"{len([*folder.iterdir()])}-{rank_of()[0]}").touch()
    if rank_of()[0] == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    totals([1.0])


def die_at_first(folder: Path) -> float:
    marker = folder / "died"
    if rank_of()[0] == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return totals([1.0])[0]


def until_asked(folder: Path) -> None:
    """Work until the system asks one of the ranks to end, then save."""
    with saving() as asked:
        (folder / f"at-work-{rank_of()[0]}").write_text(str(os.getpid()))
        while not anywhere(asked())[0]:
            time.sleep(0.01)
        (folder / f"saved-{rank_of()[0]}").touch()
