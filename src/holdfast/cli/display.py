"""The progress of a run on the terminal: bars on a screen, occasional lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from holdfast.jobs.graph import Progress
    from holdfast.runs.stages import OnStep

_LOG_SECONDS = 15.0


def clock(seconds: float | None) -> str:
    """Minutes and seconds, such as 4:07."""
    return "–:––" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextmanager
def show_jobs(console: Console, title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a run of jobs: the share done, the time left, what is running, what failed."""
    from rich import progress as bars
    from rich.text import Text

    reported, logged = 0, time.monotonic()

    def summary(progress: Progress) -> str:
        done, total = len(progress.done), len(progress.done) + len(progress.running) + progress.waiting
        left = f"about {clock(progress.seconds_left)} left"
        return f"{progress.share:4.0%}  {done} of {total}  {clock(progress.seconds)} gone, {left}"

    def announce(progress: Progress) -> None:
        nonlocal reported
        for outcome in progress.done[reported:]:
            mark = Text("✗ ", style="red") if outcome.error else Text("✓ ", style="green")
            text = Text.assemble(mark, outcome.job.name, (f"  {clock(outcome.seconds)}", "dim"))
            if outcome.error:
                text.append(f"\n  {outcome.error}", style="red")
            console.print(text, soft_wrap=True)
        reported = len(progress.done)

    if console.is_terminal:
        # The jobs' own estimate weighs them by size, as rich's speed of a bar does not.
        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(30),
            bars.TextColumn("{task.fields[words]}"),
        )
        with bars.Progress(*columns, console=console, transient=True) as live:
            whole = live.add_task(title, total=1.0, words="")
            tasks: dict[str, bars.TaskID] = {}

            def update(progress: Progress) -> None:
                announce(progress)
                live.update(whole, completed=progress.share, words=summary(progress))
                for name in tasks.keys() - progress.running.keys():
                    live.remove_task(tasks.pop(name))
                for name, share in progress.running.items():
                    if name not in tasks:
                        tasks[name] = live.add_task(f"  {name}", total=1.0, words="")
                    live.update(tasks[name], completed=share)

            yield update
    else:

        def log(progress: Progress) -> None:
            nonlocal logged
            announce(progress)
            if time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                console.print(f"{title}: {summary(progress)}", soft_wrap=True, highlight=False, markup=False)

        yield log


@contextmanager
def show_steps(console: Console, title: str) -> Iterator[OnStep]:
    """Show a run of steps: a bar with the time left on a screen, a line now and then in a log."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    started = logged = time.monotonic()
    first: int | None = None

    def log(done: int, total: int) -> None:
        nonlocal logged, first
        first = done if first is None else first
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            left = (logged - started) * (total - done) / (done - first) if done > first else None
            console.print(f"{title}: step {done} of {total}, about {clock(left)} left", soft_wrap=True, highlight=False)

    yield log
