"""What verbs print."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from holdfast.runs.audit import Audit
    from holdfast.runs.search.confirmation import Confirmed
    from holdfast.runs.search.trial import Trial
from holdfast.cli.options import fail

WIDE = 110
"""columns of a terminal from which the verdict table names the worst attacks too"""


def show_status(folder: Optional[Path]) -> None:
    """Say how the run in a folder stands, and end the command, so that nothing else has to be given."""
    if folder is None:
        return
    from holdfast.core.files import is_held
    from holdfast.runs.standing import MARKER

    console = make_console()
    show = _show_standing if (folder / MARKER).is_file() else _show_progress
    command = show(console, folder)
    console.print("A holdfast is running there." if is_held(folder) else "None is running there.", highlight=False)
    say_next(console, command)
    raise typer.Exit


def _show_standing(console: Console, folder: Path) -> str:
    """How a demo, a study or a search stands; returns the command to go on with."""
    from holdfast.report.words.numbers import count, duration
    from holdfast.runs.standing import Standing

    standing = Standing.read(folder)
    ended = f"{count(standing.done, 'job')} ended, {standing.waiting + len(standing.running)} to go"
    left = f"; about {duration(standing.seconds_left)} left" if standing.seconds_left else ""
    sentence = f"The {standing.what} in {folder}: {ended}, {duration(standing.seconds)} so far{left}."
    console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    for name in standing.running:
        console.print(f"Running: {name}", soft_wrap=True, highlight=False, markup=False)
    for reason in standing.failed[:3]:
        console.print(f"Failed: {reason}", soft_wrap=True, highlight=False, markup=False)
    if standing.waiting or standing.running or standing.failed:
        return standing.command
    return f"holdfast report {quoted(folder)} --out {quoted(folder / 'report.html')}"


def _show_progress(console: Console, folder: Path) -> str:
    """How an audit stands; returns the command to go on with."""
    from rich.table import Table

    from holdfast.report.words.numbers import count, duration
    from holdfast.stats.progress import read_progress

    progress = read_progress(folder)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "finished", "diverged", "failed"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for label, cells in progress.models.items():
        table.add_row(label, str(cells.finished), str(cells.diverged), str(cells.failed))
    console.print(f"{progress.title}, in {folder}", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    ended = progress.all.finished + progress.all.diverged
    sentence = f"{ended} of {count(progress.all.planned, 'run')} ended, in {duration(progress.seconds)} of work"
    if progress.all.left and progress.seconds_left is not None:
        sentence += f"; about {duration(progress.seconds_left)} of work left, divided by the processes"
    console.print(f"{sentence}.", highlight=False)
    for reason in progress.reasons[:3]:
        console.print(f"Failed: {reason}", soft_wrap=True, highlight=False, markup=False)
    if progress.all.left and progress.command:
        return progress.command
    return f"holdfast report {quoted(folder)} --out {quoted(folder / 'report.html')}"


def make_console() -> Console:
    from rich.console import Console

    return Console()


def show_plan(console: Console, audited: Audit, workers: int) -> None:
    """What the audit can tell with more or fewer seeds, and what it takes."""
    from dataclasses import replace

    from rich.table import Table

    from holdfast.campaign.cells import evaluations_of
    from holdfast.cli.display import show_steps
    from holdfast.core.domain import Domain
    from holdfast.report.words.numbers import duration
    from holdfast.runs.estimate import estimate
    from holdfast.stats.power import SEED_SPREAD, detectable

    domain = Domain.open(audited.domain)
    along, _ = evaluations_of(domain)
    hazard = [name for name, held in along if held.measures(domain) == "hazard" and name in domain.question_sources]
    counts = [len(domain.questions(name).questions) for name in sorted(hazard, key=lambda name: name != "hazard")]
    model = next(held for held in audited.models() if held.role == "defended")
    with show_steps(console, "timing every attack") as on_step:
        taken = estimate(audited.planned(), model, on_step)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("seeds", "runs", "detectable, one attack", "detectable, whole suite", "time", "FLOPs", "tokens"):
        table.add_column(column, justify="right")
    for seeds in sorted({5, 10, audited.seeds}):
        cells = len(list(replace(audited, seeds=seeds).planned().cells()))
        share = cells / taken.cells
        found = detectable(counts[0], seeds, len(audited.attacks)) if counts else None
        points = (f"{100 * found.one:.0f} points", f"{100 * found.suite:.0f} points") if found else ("no interval",) * 2
        table.add_row(
            str(seeds), str(cells), *points, duration(share * taken.seconds / workers),
            f"{share * taken.flops:.2g}", f"{share * taken.tokens:.2g}",
        )  # fmt: skip
    console.print(table)
    if counts and (found := detectable(counts[0], audited.seeds, len(audited.attacks))):
        one, suite, questions = (round(100 * held, 1) for held in (found.one, found.suite, found.from_questions))
        console.print(
            f"With {counts[0]} hazard questions and {audited.seeds} seeds a true distance of {one:.0f} points from the "
            f"threshold (about {100 * found.threshold:.0f} %) is found in 80 of 100 audits, and one of {suite:.0f} points "
            f"above it by any of {len(audited.attacks)} attacks after Holm's correction. The questions alone leave a "
            f"standard error of {questions} points, which more seeds do not lower. Hazard is taken to vary by "
            f"{100 * SEED_SPREAD:.0f} points over seeds.",
            soft_wrap=True,
            highlight=False,
        )
    elif counts:
        console.print(
            f"{audited.seeds} seeds are too few for an interval, so no verdict but undecided could be given; 5 are the fewest."
        )
    measuring = 100 * taken.evaluating / taken.seconds
    console.print(
        f"Timed on this machine for {workers} processes; {measuring:.0f} % of the work is measuring. Each process holds "
        "one model in training.",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def cost_sentence(out: Path, preset: str) -> str:
    """What an attack took, in one sentence."""
    from holdfast.core.records import read_campaign
    from holdfast.report.words.numbers import duration
    from holdfast.stats.suspicion import mean_costs

    _, results = read_campaign(out)
    held = [result for result in results if result.attack == preset]
    found = mean_costs(held)
    updates = max((record.step for result in held for record in result.records), default=0)
    parts = [f"{updates:,} updates"]
    if "tokens" in found:
        parts += [f"{found['tokens']:,.0f} tokens", f"{found['flops']:.2g} FLOPs"]
    if "peak_memory" in found:
        parts += [f"{found['peak_memory'] / 1e9:.2g} GB at the peak", duration(found["seconds"])]
    return f"The attack took {', '.join(parts)}, measuring left out."


def confirmed_sentence(name: str, winner: Trial, found: Confirmed, ability_loss: float) -> str:
    """What was found and what of it held on the claim questions, in one sentence, and whether ability did."""
    from holdfast.runs.search.trial import attack_of

    interval = (
        f", 95 % interval {100 * found.interval.low:.0f} to {100 * found.interval.high:.0f}" if found.interval else ""
    )
    runs = f"with {found.seeds} fresh seeds" if attack_of(winner).draws else "in one run, for it draws nothing"
    told = (
        f"{name}: {100 * winner.hazard:.0f} % of the hazard on the selection questions; confirmed on the claim questions "
        f"{runs}: {100 * found.hazard:.0f} %{interval}; ability on questions that the search did not ask "
        f"{100 * found.ability_before:.0f} % before, {100 * found.ability:.0f} % after."
    )
    if found.failed:
        told += f" {found.failed} runs of the confirmation did not finish."
    if found.ability < found.ability_before - ability_loss:
        told += f" That is more than the {100 * ability_loss:.0f} points that it might cost."
    return told


def finish(console: Console, out: Path, errors: Sequence[str | None]) -> None:
    """Write the report; print the verdicts, the verdict table and the report's path.

    Raises:
        HoldfastError: no cell succeeded.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from holdfast.core.records import read_campaign
    from holdfast.report.page import build_report

    _, results = read_campaign(out)
    if all(result.status == "failed" for result in results):
        fail(f"every cell failed, the first because: {results[0].reason}")
    page = out / "report.html"
    [section] = build_report([out], page).sections
    table = Table(title=Text(section.title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    wide = console.width >= WIDE
    for column in ("model", "verdict", *(("worst attack",) if wide else ())):
        table.add_column(column, overflow="fold")
    for column in ("hazard\nbefore", "mean\nafter", "worst\nafter", "ability\nthere", "\nresisted"):
        table.add_column(column, justify="right", overflow="fold")
    for row in section.rows:
        names = (row.model, row.verdict, *((row.worst_attack,) if wide else ()))
        table.add_row(*map(Text, (*names, row.before, row.mean, row.worst, row.ability, row.resisted)))
    console.print(table)
    for finding in section.findings:
        console.print(Text(finding.headline), soft_wrap=True)
    failed = [error for error in errors if error]
    if failed:
        console.print(f"{len(failed)} cells failed; run the same command again to try them anew", style="red")
    console.print(f"The report is {page}", soft_wrap=True, highlight=False, markup=False)


def this_command() -> str:
    return shlex.join(["holdfast", *sys.argv[1:]])


def say_next(console: Console, command: str) -> None:
    """Suggest the next command, in words that this shell understands: the environment may not be on its path."""
    import shutil

    started = Path(sys.argv[0])
    if started.name == "holdfast" and shutil.which("holdfast") is None:
        command = quoted(os.path.relpath(started)) + command.removeprefix("holdfast")
    console.print(f"Next: {command}", soft_wrap=True, highlight=False)


def quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
