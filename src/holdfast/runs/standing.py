"""A folder that a long run works in: claimed by a marker, held by one process, and able to say how the run stands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, with_config

from holdfast.core.files import claimed, write_text
from holdfast.core.reading import STRICT, misfit, parsed
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Progress

MARKER = "run.json"
_EVERY = 5.0
"""seconds between two notes of how the run stands: a run that is killed has cost its time too"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Standing:
    """The run in a folder, and its standing when last noted."""

    what: str
    """such as "demo", "study paper-tables" or "search\""""
    settings: dict[str, Any] = field(default_factory=dict)
    """what a folder may hold one value of only, such as the world's seed"""
    command: str = ""
    seconds: float = 0.0
    """spent in this folder, over all processes that worked there"""
    done: int = 0
    waiting: int = 0
    running: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """one sentence each"""
    seconds_left: float | None = None

    @classmethod
    def read(cls, folder: Path) -> Standing:
        """Read how the run in a folder stands.

        Raises:
            HoldfastError: nothing has run there, or its marker is damaged.
        """
        path = folder / MARKER
        try:
            standing: Standing = parsed(_STANDING, path.read_bytes())
            return standing
        except FileNotFoundError:
            raise HoldfastError(
                f"nothing runs in {folder}: it has no {MARKER}; give a folder that holdfast works in"
            ) from None
        except ValueError as error:
            raise HoldfastError(
                f"{path} is damaged ({misfit(error)}); remove it with its folder, or give another --out"
            ) from error

    def write(self, folder: Path) -> None:
        write_text(folder / MARKER, json.dumps(asdict(self), indent=2) + "\n")


_STANDING = TypeAdapter(Standing)


class Work:
    """A run in a folder, which notes how its jobs stand."""

    def __init__(self, folder: Path, standing: Standing, on_progress: Callable[[Progress], None]) -> None:
        self.folder, self.standing = folder, standing
        self._on_progress = on_progress
        self._before = standing.seconds
        self._started = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds spent in this folder so far, over all processes."""
        return self._before + time.monotonic() - self._started

    def note(self, **changes: Any) -> None:
        """Write down how the run stands."""
        self.standing = Standing(**{**asdict(self.standing), "seconds": self.seconds, **changes})
        self.standing.write(self.folder)
        self._noted = time.monotonic()

    def progress(self, now: Progress) -> None:
        """Show how the jobs stand, and write the standing at intervals."""
        if time.monotonic() - self._noted > _EVERY or not (now.running or now.waiting):
            self.note(
                done=len(now.done),
                waiting=now.waiting,
                running=list(now.running),
                failed=[f"{outcome.job.name}: {outcome.error}" for outcome in now.done if outcome.error],
                seconds_left=now.seconds_left,
            )
        self._on_progress(now)


@contextmanager
def working_in(
    folder: Path,
    what: str,
    settings: Mapping[str, Any],
    command: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    inputs: tuple[Path, ...] = (),
) -> Iterator[Work]:
    """Claim a folder that is new, empty or of the same run, and keep the claim until the block ends.

    Raises:
        HoldfastError: the folder holds something else or is an input, or another process works in it.
    """
    with claimed(folder, MARKER, *inputs) as known:
        before = 0.0
        if known:
            standing = Standing.read(folder)
            if (standing.what, standing.settings) != (what, dict(settings)):
                raise HoldfastError(
                    f"{folder} holds {_named(standing.what, standing.settings)}; give another --out for "
                    f"{_named(what, settings)}"
                )
            before = standing.seconds
        work = Work(folder, Standing(what=what, settings=dict(settings), command=command, seconds=before), on_progress)
        work.note()
        try:
            yield work
        finally:
            work.note(running=[])


def _named(what: str, settings: Mapping[str, Any]) -> str:
    chosen = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"the {what}" + (f" ({chosen})" if chosen else "")
