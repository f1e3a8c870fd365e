"""The one loop that drives what changes weights.

A plug-in's `steps` is a generator of losses, one item an update. An observer is a generator around it. The observer sees every
update after those closer to the plug-in, passes the update on, and ends the walk by ending. Metering, measuring at milestones,
early stop, pruning, timing, progress, the stream of losses, and saving and resuming are observers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from holdfast.core.files import write_text
from holdfast.core.losses import Line, read_lines, written
from holdfast.core.stopping import Stopped, saving
from holdfast.core.types import NonFinite
from holdfast.engine.ranks import anywhere, is_first, means, rank_of
from holdfast.engine.run import Run
from holdfast.engine.session import Session

Losses = TypeVar("Losses", float, Mapping[str, float])

Steps = Iterator[tuple[int, Any]]
"""(updates made so far, losses of the last), one item an update."""

Observer = Callable[[Session[Any], Steps], Steps]

SAVE_EVERY = 30.0
"""seconds between two states of a run that can go on after a kill, at least"""

SAVE_COST = 0.6
"""seconds of writing that are worth it so often: a state that takes longer is written less often in proportion, so that writing
never takes more than a fiftieth of a run. For a minute of writing and a kill a day that is the best interval (Young 1974)."""


class Walkable(Protocol):
    """A plug-in that changes weights: an attack, a safeguard, the pretraining of a testbed's model."""

    def steps(self, model: Any, data: Any, run: Run) -> Iterator[Any]: ...


def walk(session: Session[Any], plugin: Walkable, *observers: Observer) -> None:
    """Drive a plug-in to its end, or until an observer ends the walk.

    Args:
        session: the model, its data and its run.
        plugin: what changes the model.
        observers: the first stands closest to the plug-in and sees an update first.

    Raises:
        NonFinite: a loss is NaN or infinite; the message says at which step.
    """
    steps: Steps = drive(plugin.steps(session.model, session.data, session.run), session.run)
    for observer in observers:
        steps = observer(session, steps)
    for _ in steps:
        pass


def drive(steps: Iterator[Losses], run: Run) -> Iterator[tuple[int, Losses]]:
    """Count the updates of a plug-in's `steps`, from where a resumed run goes on; yield (updates made, losses).

    Raises:
        NonFinite: a loss is NaN or infinite; the message says at which step.
    """
    for step, losses in enumerate(steps, start=run.start + 1):
        losses = _over_ranks(losses)
        for name, value in losses.items() if isinstance(losses, Mapping) else [("loss", losses)]:
            if not math.isfinite(value):
                raise NonFinite(f"the {name} became {value} at step {step}; lower the learning rate or check the data")
        yield step, losses


def _over_ranks(losses: Losses) -> Losses:
    """The losses of the whole batch, of which each rank has seen its share."""
    if rank_of()[1] == 1:
        return losses
    if isinstance(losses, Mapping):
        return cast(Losses, dict(zip(losses, means(list(losses.values())), strict=True)))
    return means([losses])[0]


class Untouched:
    """A plug-in that changes nothing: observers see the model as it is."""

    def steps(self, model: Any, data: Any, run: Run) -> Iterator[float]:
        """Yield nothing."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """Save the run now and then, and go on from what an earlier process saved. This has to be the outermost observer.

    The state is saved when every observer has seen an update, so that tracked state and weights belong to the same step. Where
    the system asks the process to end, the state is saved after the running update, and the walk ends (`core.stopping`). Of
    several ranks, all save and end where one is asked.
    """

    path: Path
    key: str
    """what the run is; a state of another run is left alone"""

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        session.run.resume(self.path, session.model, self.key)
        saved, wait = time.monotonic(), SAVE_EVERY
        with saving() as asked_to_stop:
            for step, losses in steps:
                yield step, losses
                stop, due = anywhere(asked_to_stop(), (begun := time.monotonic()) - saved >= wait)
                if due or stop:
                    session.run.save(self.path, session.model, step, self.key)
                    saved = time.monotonic()
                    wait = SAVE_EVERY * max(1.0, (saved - begun) / SAVE_COST)
                if stop:
                    raise Stopped


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Report every update to a display."""

    on_step: Callable[[int, int], None]
    """called with updates made and updates in all"""
    total: int

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        for step, losses in steps:
            self.on_step(step, self.total)
            yield step, losses


@dataclass(frozen=True)
class Until:
    """End the walk after so many updates."""

    last: int

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        for step, losses in steps:
            yield step, losses
            if step >= self.last:
                return


class LastLosses:
    """Keep the losses of the last update."""

    def __init__(self) -> None:
        self.losses: Any = None

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        for step, losses in steps:
            self.losses = losses
            yield step, losses


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """Write the losses of every update of a safeguard to a file, a line an update, while the safeguard runs.

    The file is behind no state that `Resumable` saves, and a run that goes on drops what came after the state: the file has
    every update once.
    """

    path: Path
    stage: int
    preset: str
    earlier: Sequence[Line] = ()
    """the lines of the stages before, with which the file begins"""

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        if not is_first():
            yield from steps
            return
        mine = [line for line in read_lines(self.path) if line.stage == self.stage and line.step <= session.run.start]
        write_text(self.path, "".join(map(written, (*self.earlier, *mine))))
        with self.path.open("a", encoding="utf-8") as file:
            for step, losses in steps:
                file.write(written(Line(stage=self.stage, preset=self.preset, step=step, losses=dict(losses))))
                file.flush()
                yield step, losses
