"""How a run goes, in a terminal or in a notebook; elsewhere nothing is shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.cli.display import clock, show_jobs, show_steps
from holdfast.core.escape import for_html
from holdfast.jobs.graph import Progress

_EVERY = 0.5
"""seconds between two changes of what a notebook shows"""


@contextmanager
def watching_jobs(title: str, wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows a run of jobs, if that is wanted and there is somebody to see it."""
    if wanted and (cell := _Cell.here()):
        yield lambda now: cell.show(
            title,
            now.share,
            f"{len(now.done)} done, {len(now.running)} running, {now.waiting} waiting",
            now.seconds_left,
        )
        cell.clear()
    elif wanted and sys.stderr.isatty():
        with show_jobs(_console(), title) as on_progress:
            yield on_progress
    else:
        yield lambda now: None


@contextmanager
def watching_steps(title: str, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """The same for a run of steps."""
    if wanted and (cell := _Cell.here()):
        started = time.monotonic()

        def show(done: int, total: int) -> None:
            seconds = time.monotonic() - started
            cell.show(title, done / (total or 1), f"step {done} of {total}", seconds * (total - done) / (done or 1))

        yield show
        cell.clear()
    elif wanted and sys.stderr.isatty():
        with show_steps(_console(), title) as on_step:
            yield on_step
    else:
        yield lambda done, total: None


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False)


class _Cell:
    """A place in a notebook's output that is written over."""

    def __init__(self, handle: Any, make: Callable[[str], Any]) -> None:
        self._handle, self._make, self._last = handle, make, 0.0

    @classmethod
    def here(cls) -> _Cell | None:
        """The place below the cell that runs; None outside a notebook."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is None or not hasattr(shell, "kernel"):
            return None
        from IPython.display import HTML, display

        return cls(display(HTML(""), display_id=True), HTML)  # type: ignore[no-untyped-call]

    def show(self, title: str, share: float, words: str, seconds_left: float | None) -> None:
        if time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            text = f"{for_html(title)}: {share:.0%}, {for_html(words)}, about {clock(seconds_left)} left"
            self._handle.update(self._make(f'<progress max="1" value="{share:.3f}"></progress> {text}'))

    def clear(self) -> None:
        self._handle.update(self._make(""))
