"""Where the time of an update goes: a trace that viewers of profiles open, and a table of operations."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from holdfast.core.files import atomic_file, write_text
from holdfast.core.profiling import TRACE
from holdfast.engine.ranks import is_first

if TYPE_CHECKING:
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Steps

Step = TypeVar("Step")

UPDATES = 2
"""how many are recorded: the first also has what happens once, such as making the states of an optimizer"""
_OPERATIONS = 40
"""in the table"""


@dataclass(frozen=True, kw_only=True)
class Profiling:
    """Record the first updates of a walk. Recording takes time and changes no number. Of several ranks, rank 0 records its own.

    This has to be the observer closest to the plug-in, so that no measurement stands in an update.
    """

    folder: Path
    name: str
    """of the files, before their endings"""

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        if not is_first():
            yield from steps
            return
        made = 0
        with profile(activities=_activities()) as watched:
            while made < UPDATES:
                with record_function(f"update {made + 1}"):
                    step = next(steps, None)
                if step is None:
                    break
                made += 1
                yield step
        if made:
            self._write(watched)
        yield from steps

    def _write(self, watched: profile) -> None:
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = watched.key_averages().table(sort_by=by, row_limit=_OPERATIONS)
        write_text(self.folder / f"{self.name}.txt", table)
        with TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            watched.export_chrome_trace(str(plain))
            whole = self.folder / f"{self.name}{TRACE}"
            with atomic_file(whole) as packed, plain.open("rb") as source, gzip.open(packed, "wb") as target:
                shutil.copyfileobj(source, target)


def recorded(name: str, steps: Iterator[Step]) -> Iterator[Step]:
    """The same steps, which stand under a name in a profile."""
    while True:
        with record_function(name):
            step = next(steps, None)
        if step is None:
            return
        yield step


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
