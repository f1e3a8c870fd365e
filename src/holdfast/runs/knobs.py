"""What is turned so that a command fits into the memory that it may take (`--memory`).

What changes no number is turned first, and nothing more than is needed. The rows that go through a model at once come last: they
change last digits and are therefore a part of identities. An earlier choice of rows stands as long as it fits, so that the same
command goes on with the same run, whatever else takes memory meanwhile. Precision is never turned: it changes what a run shows.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from holdfast.core.files import cache_folder, digest, write_text
from holdfast.core.model_size import count_weights
from holdfast.core.options import Options
from holdfast.core.presets import leaves
from holdfast.core.reading import line
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.memory import MemoryPlan, free, resident

Plan = Callable[[Options], Sequence[MemoryPlan]]
"""the memory of the stages of a command that is run with these options"""

FREE: Mapping[str, Mapping[str, Any]] = {"--offload": {"offload": True}, "--checkpointing": {"checkpointing": True}}
"""what changes no number, in the order in which it is turned"""
_SPARE = 1.1
"""what is taken over a predicted peak: predictions in float32 were up to 8 % below what was measured"""
_WORTH = 0.98
"""of the memory; a knob that leaves more is left alone"""
_MOST = 40
"""bytes a weight that training takes at most in float32, activations apart"""
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, kw_only=True)
class Room:
    """The memory that a command may take, in bytes; None where nobody knows."""

    device: str
    here: int | None
    """where the model is"""
    host: int | None
    """on the host, where the model is elsewhere"""

    def holds(self, plans: Sequence[MemoryPlan]) -> bool:
        on_host = max(plan.on_host if plan.on_device else 0 for plan in plans)
        return (self.here is None or needed(plans) <= self.here) and (self.host is None or on_host <= self.host)


@dataclass(frozen=True, kw_only=True)
class Turned:
    """How a command is run, and what that takes."""

    options: Options
    plans: Sequence[MemoryPlan]
    knobs: tuple[str, ...] = ()
    """what was turned, as on the command line"""


def needed(plans: Iterable[MemoryPlan]) -> int:
    """The memory that has to be free where the model is: the predicted peak, and a tenth more."""
    return with_spare(max(plan.peak for plan in plans))


def with_spare(peak: int) -> int:
    """A predicted peak, and a tenth more."""
    return math.ceil(_SPARE * peak)


def room_on(device: str, limit: str) -> Room:
    """The memory that a command may take: what is free (`auto`), or a size such as `24GB` where the model is.

    Raises:
        HoldfastError: the limit is neither.
    """
    own, host = None if limit == "auto" else _size(limit), free("cpu")
    host = None if host is None else host + resident()  # a plan counts what this process has already
    if device == "cpu":
        return Room(device=device, here=own or host, host=None)
    return Room(device=device, here=own or free(device), host=host)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT]i?B)", text.strip(), re.IGNORECASE)
    if found is None or not (size := int(float(found[1]) * _UNITS[found[2].upper()])):
        raise HoldfastError(f"--memory {line(text)} is no amount of memory; give auto, or a size such as 24GB")
    return size


def turn(plan: Plan, options: Options, rows: int, room: Room, earlier: int | None = None) -> Turned:
    """Turn what takes less memory until a command fits, or nothing is left to be turned.

    Args:
        plan: of the command.
        options: as the user gave them; what the user has set stays as it is.
        rows: the most rows that an update reads.
        room: the memory that the command may take.
        earlier: the rows at once that were chosen for the same run before; None: none were.

    Raises:
        HoldfastError: the memory cannot be predicted.
    """
    planned = cache(plan)
    if earlier is not None and options.micro_batch is None:
        chosen = replace(options, micro_batch=earlier)
        again = _free(Turned(options=chosen, plans=planned(chosen), knobs=(f"--micro-batch {earlier}",)), planned, room)
        if room.holds(again.plans):
            return again
    now = _free(Turned(options=options, plans=planned(options)), planned, room)
    if not room.holds(now.plans) and options.micro_batch is None:
        fewer = [2**power for power in reversed(range(max(rows - 1, 1).bit_length()))]
        place = bisect_left(fewer, True, key=lambda count: room.holds(_with_rows(now, planned, count).plans))
        now = _with_rows(now, planned, fewer[min(place, len(fewer) - 1)])
    return now


def _free(now: Turned, plan: Plan, room: Room) -> Turned:
    """The command with as much of what changes no number as it needs to fit."""
    for flag, change in FREE.items():
        if not room.holds(now.plans):
            now = _with(now, plan, flag, **change)
    return now


def _with_rows(now: Turned, plan: Plan, rows: int) -> Turned:
    return _with(now, plan, f"--micro-batch {rows}", micro_batch=rows)


def _with(now: Turned, plan: Plan, flag: str, **change: Any) -> Turned:
    """The command with a knob turned; as it is, where that takes hardly less or does not go with the model."""
    options = replace(now.options, **change)
    try:
        plans = plan(options)
    except HoldfastError:
        return now
    if needed(plans) > _WORTH * needed(now.plans):
        return now
    return Turned(options=options, plans=plans, knobs=(*now.knobs, flag))


def lean_instead(plan: Plan, turned: Turned, room: Room) -> int | None:
    """The memory that the command needs in lean precision, where this makes it fit."""
    lean = _with(turned, plan, "--precision lean", precision="lean", matmul="torch")
    return needed(lean.plans) if room.holds(lean.plans) else None


def most_rows(plugins: Iterable[Any]) -> int:
    """The most rows that an update reads, by the fields of plug-ins that say so."""
    sizes = [
        value
        for plugin in plugins
        for path, value in leaves(plugin).items()
        if path[-1].endswith("batch_size") and isinstance(value, int)
    ]
    return max(sizes, default=16)


def too_large(plan: Plan, options: Options, model: str) -> tuple[int, int] | None:
    """The predicted peak and the memory that there is, where a command does not fit; None: it fits, or nobody knows.

    Only a model that is large for its device is looked at: on others a plan would take longer than it is worth.
    """
    room = free(options.device)
    try:
        if room is None or 2 * _MOST * count_weights(Checkpoint(model).folder) < room:
            return None
        plans = plan(options)
    except (HoldfastError, OSError):  # of a model that cannot be looked at, or a plug-in that cannot be rehearsed
        return None
    room += 0 if plans[0].on_device else resident()
    peak = max(each.peak for each in plans)
    return (peak, room) if peak > room else None


class Choice:
    """The rows at once that were chosen for a run, kept in the cache."""

    def __init__(self, content: Callable[[], Any]) -> None:
        """`content`: what the run is made of, as JSON; asked for when it is needed, since it takes hashes of models."""
        self._content = content

    @cached_property
    def _path(self) -> Path:
        return cache_folder() / "memory" / f"{digest(self._content())}.json"

    @property
    def rows(self) -> int | None:
        """None: none were chosen."""
        try:
            rows = json.loads(self._path.read_bytes())["micro_batch"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return rows if type(rows) is int and rows > 0 else None

    def of(self, options: Options) -> Options:
        """The options with the rows that were chosen, where the user has not set them."""
        return options if options.micro_batch is not None else replace(options, micro_batch=self.rows)

    def keep(self, rows: int | None) -> None:
        if rows is not None and rows != self.rows:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({"micro_batch": rows}) + "\n")
