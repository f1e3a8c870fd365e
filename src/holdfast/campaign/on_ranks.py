"""A job on several processes of its worker's machine, as torchrun would start them: for a model that one device cannot hold.

The worker that has the job coordinates the processes as its own coordinator coordinates workers (`jobs.run`): rank 0 is a
worker with one job, and the other ranks follow rank 0 (`engine.ranks`). The worker itself stays out of their group, so that an
error in the group costs the group and not the worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from holdfast.core.stopping import STATUS, Stopped, listening
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.jobs.executor import Arrival, Place
from holdfast.jobs.graph import Job, Progress
from holdfast.jobs.run import run_jobs
from holdfast.jobs.worker import Setting, failure, prepare, serve, setting

Value = TypeVar("Value")

_FRESH = multiprocessing.get_context("spawn")
"""how the processes are started; a fork of what has loaded torch could not use a GPU"""

_TORN = 70
"""the exit status of a rank that ended because another rank did"""

_GRACE = 5.0
"""seconds that the other ranks have to end by themselves when one has ended"""

_LESS = "give more --ranks, --checkpointing, or --micro-batch 1"

_THOUSAND = 1000


def on_ranks(
    ranks: int, call: Callable[..., Value], mine: Mapping[str, Any] = MappingProxyType({}), **arguments: Any
) -> Value:
    """Call a module-level function on so many processes, which all call it together; return what rank 0's call returns.

    In a process that is one of several already, the processes that are there call the function.

    Args:
        ranks: how many processes; 1: this process alone.
        call: the function; it and its arguments are sent to the processes.
        mine: further arguments of rank 0 alone. Processes that are started here take `on_step` (called with steps done and steps
            in all) and no other.
        arguments: of the function.

    Raises:
        NonFinite: the function raised this.
        HoldfastError: the function failed otherwise, or one of the processes died, twice.
        Stopped: the system stopped this process; the others have saved what they could.
    """
    from holdfast.engine.ranks import rank_of, together

    if ranks == 1 or rank_of()[1] > 1:
        return together(call, mine, **arguments)
    on_step = mine.get("on_step")
    job = Job(name="", call=_together, arguments={"call": call, "arguments": arguments, "steps": on_step is not None})

    def show(progress: Progress) -> None:
        if on_step is not None:
            for share in progress.running.values():
                on_step(round(_THOUSAND * share), _THOUSAND)

    [outcome] = run_jobs([job], _Ranks(ranks), on_progress=show).values()
    if outcome.error is not None:
        raise HoldfastError(outcome.error)
    if isinstance(outcome.result, NonFinite):
        raise outcome.result
    if on_step is not None:  # the last step and the result may have come together
        on_step(_THOUSAND, _THOUSAND)
    result: Value = outcome.result
    return result


@dataclass(frozen=True)
class _Ranks:
    """One worker that is as many processes."""

    shares_memory: ClassVar[bool] = False

    ranks: int
    workers: int = 1

    @property
    def threads(self) -> int:
        """The threads of this process, divided by the ranks."""
        import torch

        return max(1, torch.get_num_threads() // self.ranks)

    def open(self) -> Place:
        """Make a place without processes."""
        return _Group(self.ranks, setting(self.threads, 1))


class _Group:
    """The processes of one job. Where one of them ends early, all end, and `begin` starts them anew."""

    def __init__(self, ranks: int, given: Setting) -> None:
        self._ranks, self._given = ranks, given
        self._processes: list[BaseProcess] = []
        self._ends: list[Connection] = []
        self._came: list[Arrival] = []
        self._watching = threading.Thread()
        self._killed: set[BaseProcess] = set()

    def begin(self, count: int) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        # This process holds the store, as torchrun's agent does, so that nobody has to guess a port that stays free.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(self._ranks):
            ours, theirs = _FRESH.Pipe()
            variables = _variables(rank, self._ranks, self._store.port)
            if rank == 0:
                process = _FRESH.Process(target=_lead, args=(theirs, variables))
                self._came.append(Arrival(ours, "0"))  # what is sent to it waits in its pipe
            else:
                process = _FRESH.Process(target=_follow, args=(theirs, variables, self._given, _GRACE))
                self._ends.append(ours)
            process.start()
            theirs.close()
            self._processes.append(process)
        self._watching = threading.Thread(target=self._watch, args=(tuple(self._processes),), daemon=True)
        self._watching.start()

    def arrivals(self) -> list[Arrival]:
        came, self._came = self._came, []
        return came

    def coming(self) -> int:
        return 0

    def fate(self, name: str) -> str:
        self._watching.join()
        for process in self._processes:
            process.join()
        said = [sentence for end in self._ends if (sentence := _last_words(end))]
        codes = {n: p.exitcode or 0 for n, p in enumerate(self._processes, start=1) if p not in self._killed}
        number = next((number for number, code in codes.items() if code != _TORN), min(codes))
        self.close()
        if said:
            return said[0]
        how = f"signal {-codes[number]}" if codes[number] < 0 else f"exit status {codes[number]}"
        return f"process {number} of the {self._ranks} that share the model died ({how}), perhaps for lack of memory: {_LESS}"

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for end in self._ends:
            end.close()
        self._processes, self._ends = [], []
        self._killed.clear()

    def _watch(self, processes: tuple[BaseProcess, ...]) -> None:
        """Kill the processes that are left some seconds after the first has ended: nccl would wait for it for ever."""
        left = {process.sentinel: process for process in processes}
        deadline = float("inf")
        while left and time.monotonic() < deadline:
            for ended in wait(list(left), None if len(left) == len(processes) else deadline - time.monotonic()):
                del left[ended]  # type: ignore[arg-type]
            deadline = min(deadline, time.monotonic() + _GRACE)
        for process in left.values():
            self._killed.add(process)
            process.kill()


def _variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun would give a process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": str(True),
    }  # fmt: skip


def _lead(connection: Connection, variables: Mapping[str, str]) -> None:
    """Be rank 0: a worker, whose job is `_together`."""
    os.environ.update(variables)
    serve(connection)


def _together(
    call: Callable[..., Value], arguments: Mapping[str, Any], steps: bool, on_step: Callable[[int, int], None]
) -> Value | NonFinite:
    from holdfast.engine.ranks import dismiss, is_torn, opened, together

    try:
        with opened():
            result = together(call, {"on_step": on_step} if steps else {}, **arguments)
            dismiss()
            return result
    except NonFinite as error:  # callers tell this from other errors, and a job's error is a sentence
        return error
    except Exception as error:
        if is_torn(error):
            os._exit(_TORN)
        raise


def _follow(connection: Connection, variables: Mapping[str, str], given: Setting, grace: float) -> None:
    """Be another rank, until rank 0 is done or the worker is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    os.environ.update(variables)
    prepare(given)
    from holdfast.engine.ranks import follow, is_torn, opened

    try:
        with listening(signal.SIGUSR2), opened():
            try:
                follow()
            except Exception as error:
                if is_torn(error):
                    os._exit(_TORN)
                # What fails on every rank is told by rank 0, which may be a little behind.
                time.sleep(grace)
                connection.send(failure(error)[0])
                raise
    except Stopped:
        os._exit(STATUS)
    except Exception:  # it has been told
        os._exit(1)


def _end_with(connection: Connection) -> None:
    """End this process when the worker is gone."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)


def _last_words(end: Connection) -> str:
    """What a process that is gone has said of its end."""
    try:
        return str(end.recv())
    except (EOFError, OSError):
        return ""
