"""The processes of one run, as torchrun starts them: their group, who speaks and writes, and what all of them do together.

Rank 0 runs the command: it alone holds locks, writes files and shows progress. The other ranks wait for the calls that need a
model and run each of them with rank 0 (`together`). Without torchrun there is one process, and everything here is as if it
were not there.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from holdfast.core.outside import load_same, loaded
from holdfast.core.types import HoldfastError

Value = TypeVar("Value")

ENDED = "a process of this run has ended; run the same command again to go on from what was saved last"

_PATIENCE = timedelta(hours=12)
"""How long ranks wait for each other: rank 0 may wait for another run's lock. Who waits for a dead rank is told at once."""

_groups = 0
"""how many groups this process has been in: in tests it runs several commands"""

_speaks: bool | None = None
"""whether this process says how the run ended, after an error in its group; None: there was none"""


def rank_of() -> tuple[int, int]:
    """This process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this process is rank 0, which writes."""
    return rank_of()[0] == 0


@contextmanager
def opened() -> Iterator[None]:
    """Be one of the processes that torchrun has started: gloo between processors, nccl between GPUs.

    After an error, whoever met it first may speak.
    """
    global _groups, _speaks
    _speaks = None
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        store=PrefixStore(f"group/{_groups + 1}", _store()),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=_PATIENCE,
    )
    _groups += 1
    try:
        yield
        dist.barrier()  # gloo aborts a rank whose peer has hung up on it
    except BaseException:
        _speaks = _is_first_to_end()  # before this end wakes the others
        raise
    finally:
        if not on_gpus or sys.exc_info()[0] is None:  # after an error nccl would wait for the others
            dist.destroy_process_group()


def together(call: Callable[..., Value], mine: Mapping[str, Any] = MappingProxyType({}), **arguments: Any) -> Value:
    """Call a module-level function on every rank; return what rank 0's call returns.

    Args:
        call: the function; its arguments are sent to the other ranks.
        mine: further arguments of rank 0 alone, such as what shows progress.
        arguments: of the function.
    """
    if rank_of()[1] == 1:
        return call(**arguments, **mine)
    agreed((loaded(), torch.get_num_threads()))
    agreed((call, arguments))  # apart, as the others can only read it when they have loaded the plug-ins
    result = call(**arguments, **mine)
    dist.barrier()
    return result


@contextmanager
def by_first(opening: Callable[[], AbstractContextManager[Value]]) -> Iterator[Value]:
    """Be in a context on rank 0 alone, such as that of a folder that rank 0 writes; all ranks know its value."""
    if is_first():
        with opening() as value:
            yield agreed(value)
    else:
        yield agreed(cast(Value, None))


def dismiss() -> None:
    """Let the ranks that `follow` go on, from rank 0."""
    if rank_of()[1] > 1:
        dist.broadcast_object_list([None])


def follow() -> None:
    """Run with rank 0 what `together` calls, until rank 0 dismisses; say nothing."""
    logging.getLogger("holdfast").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    while (called := agreed(cast(Any, None))) is not None:
        plugins, threads = called
        load_same(plugins)
        torch.set_num_threads(threads)
        call, arguments = agreed(cast(Any, None))
        call(**arguments)
        dist.barrier()


def agreed(value: Value) -> Value:
    """What rank 0 has as the value, on every rank: for what a clock or the disk decides."""
    box = [value]
    if rank_of()[1] > 1:
        dist.broadcast_object_list(box)
    return box[0]


def totals(values: Sequence[float]) -> list[float]:
    """Each value summed over all ranks, in double precision."""
    if rank_of()[1] == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def averaged(mine: torch.Tensor) -> torch.Tensor:
    """The mean over all ranks of a tensor that each of them has; the tensor itself may be used up."""
    ranks = rank_of()[1]
    if ranks == 1:
        return mine
    dist.all_reduce(mine)
    return mine.div_(ranks)


def anywhere(*conditions: bool) -> list[bool]:
    """Whether each condition holds on one of the ranks at least: for what all ranks do where one has cause to."""
    return [total > 0 for total in totals([float(condition) for condition in conditions])]


def means(values: Sequence[float]) -> list[float]:
    """Each value's mean over all ranks: of a batch that is split, the value of the whole."""
    return [total / rank_of()[1] for total in totals(values)]


def speaks() -> bool:
    """Whether this process may say how the run ended: the rank that met an error first, so that an error is one sentence."""
    return os.environ.get("RANK", "0") == "0" if _speaks is None else _speaks


def _is_first_to_end() -> bool:
    try:
        return bool(_store().add(f"ended/{_groups}", 1) == 1)
    except RuntimeError:  # rank 0 held the store and has ended, with a word
        return False


def check_splits(name: str, on_one_device: str, ranks: int = 1) -> None:
    """Refuse a plug-in that needs the whole model on one device, where the model is split over several.

    Args:
        name: of the plug-in's preset.
        on_one_device: what the plug-in says of itself.
        ranks: how many there will be, where they are not there yet.

    Raises:
        HoldfastError: there are several ranks, and the plug-in has a reason.
    """
    if on_one_device and max(ranks, rank_of()[1]) > 1:
        raise HoldfastError(
            f"{name} cannot run on a model that is split over several devices, because {on_one_device}; run the command without "
            "torchrun and without --ranks"
        )


def is_torn(error: BaseException) -> bool:
    """Whether an error says that another rank is gone."""
    text = str(error).lower()
    return _groups > 0 and (
        isinstance(error, dist.DistError)
        or (isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "connection", "nccl", "peer")))
    )


@cache
def _store() -> Any:
    """What the processes of this run share from their start to their end.

    Processes that torchrun starts again find the store of before, with all that was left in it: each start has a room of its own.
    """
    store, rank, _ = next(rendezvous("env://"))
    return PrefixStore(f"start/{store.add(f'starts/{rank}', 1)}", store)
