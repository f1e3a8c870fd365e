"""The progress of a run on the terminal: bars on a screen, occasional lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from holdfast.cli.terminal import literal, say
from holdfast.core.reuse import hearing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from holdfast.jobs.graph import Progress

_LOG_SECONDS = 15.0


def clock(seconds: float | None) -> str:
    """Minutes and seconds, such as 4:07."""
    return "–:––" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _saying(console: Console) -> AbstractContextManager[None]:
    """Within the block, what is reused is said above the bars."""
    return hearing(lambda sentence: say(console, f"{sentence[:1].upper()}{sentence[1:]}"))


@contextmanager
def show_jobs(console: Console, title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a run of jobs: the share done, the time left, what is running, what failed, and what was there already."""
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
            mark = literal("✗ ", "red") if outcome.error else literal("✓ ", "green")
            line = Text.assemble(mark, literal(outcome.job.name), literal(f"  {clock(outcome.seconds)}", "dim"))
            say(console, line)
            if outcome.error:
                say(console, f"  {outcome.error}", "red")
        reported = len(progress.done)

    if console.is_terminal:
        # The jobs' own estimate weighs them by size, as rich's speed of a bar does not.
        columns = (
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(30),
            bars.TextColumn("{task.fields[words]}", markup=False),
        )
        with bars.Progress(*columns, console=console, transient=True) as live, _saying(console):
            whole = live.add_task(literal(title).plain, total=1.0, words="")
            tasks: dict[str, bars.TaskID] = {}

            def update(progress: Progress) -> None:
                announce(progress)
                live.update(whole, completed=progress.share, words=literal(summary(progress)).plain)
                for name in tasks.keys() - progress.running.keys():
                    live.remove_task(tasks.pop(name))
                for name, share in progress.running.items():
                    if name not in tasks:
                        tasks[name] = live.add_task(f"  {literal(name).plain}", total=1.0, words="")
                    live.update(tasks[name], completed=share)

            yield update
    else:

        def log(progress: Progress) -> None:
            nonlocal logged
            announce(progress)
            if time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                say(console, f"{title}: {summary(progress)}")

        with _saying(console):
            yield log


class Steps:
    """A display of a run of steps; it is called with steps done and steps in all."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self._show = show
        self._losses = ""

    def __call__(self, done: int, total: int) -> None:
        self._show(done, total, self._losses)

    def losses(self, losses: Mapping[str, float]) -> None:
        """Note the losses of the step that is shown next."""
        from holdfast.report.words.effect import losses_now

        self._losses = losses_now(losses)


@contextmanager
def show_steps(console: Console, title: str) -> Iterator[Steps]:
    """Show a run of steps and its losses: a bar with the time left on a screen, a line now and then in a log."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as progress, _saying(console):
            task = progress.add_task(literal(title).plain, total=None, losses="")
            yield Steps(
                lambda done, total, losses: progress.update(
                    task, completed=done, total=total, losses=literal(losses).plain
                )
            )
        return
    started = logged = time.monotonic()
    first: int | None = None

    def log(done: int, total: int, losses: str) -> None:
        nonlocal logged, first
        first = done if first is None else first
        if time.monotonic() - logged > _LOG_SECONDS:
            logged = time.monotonic()
            left = (logged - started) * (total - done) / (done - first) if done > first else None
            beside = f"; {losses}" if losses else ""
            say(console, f"{title}: step {done} of {total}, about {clock(left)} left{beside}")

    with _saying(console):
        yield Steps(log)
