"""The output of verbs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from holdfast.cli.answer import end
from holdfast.cli.terminal import fail, literal, make_console, quoted, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from holdfast.cli import documents
    from holdfast.report.section import Section
    from holdfast.report.table import Table
    from holdfast.report.tables.verdict import VerdictRow
    from holdfast.runs.audit import Audit
    from holdfast.runs.search.attacker import Found
    from holdfast.stats.frontier import Reached

WIDE = 110
"""columns of a terminal from which the verdict table names the worst attacks too"""


def show_status(context: typer.Context, folder: Path) -> NoReturn:
    """Print how the run in a folder stands, and end the command, so that no other option is needed.

    Args:
        context: of the verb that was asked.
        folder: that a run works in or has worked in.
    """
    from holdfast.runs.standing import MARKER

    console = make_console()
    show = _show_standing if (folder / MARKER).is_file() else _show_progress
    verbs: Any = context.find_root().command
    document, goes_on = show(console, folder, verbs.commands)
    if "--plugins" in goes_on:
        say(console, "The next command runs the plug-ins that it names, which are Python code.")
    if "lm-eval:" in goes_on:
        say(console, "The next command reads the lm-eval tasks that it names; a task file may run Python code.")
    end(context, console, document, goes_on)
    raise typer.Exit


def _show_standing(console: Console, folder: Path, verbs: Mapping[str, Any]) -> tuple[documents.Standing, str]:
    """Print how a demo, a study or a search stands; return the same and the command to continue with."""
    from holdfast.cli import documents
    from holdfast.cli.again import again
    from holdfast.core.locks import is_held
    from holdfast.report.words.status import standing as sentences
    from holdfast.runs.standing import Standing

    run, working = Standing.read(folder), is_held(folder)
    for sentence in sentences(
        f"The {run.what} in {folder}", run.done, run.waiting, run.running, run.failed, run.seconds, run.seconds_left,
        working=working,
    ):  # fmt: skip
        say(console, sentence)
    goes_on = again(run.command, folder, verbs) if run.waiting or run.running or run.failed else None
    document = documents.Standing(
        what=run.what, folder=str(folder), working=working, done=run.done, left=run.waiting + len(run.running),
        running=run.running, failed=run.failed, seconds=run.seconds, seconds_left=run.seconds_left, models=[],
    )  # fmt: skip
    return document, goes_on or f"holdfast report {quoted(folder)} --out {quoted(folder / 'report.html')}"


def _show_progress(console: Console, folder: Path, verbs: Mapping[str, Any]) -> tuple[documents.Standing, str]:
    """Print how an audit stands; return the same and the command to continue with."""
    from holdfast.cli import documents
    from holdfast.cli.again import again
    from holdfast.core.locks import is_held
    from holdfast.report.words.status import status, status_table
    from holdfast.stats.progress import read_progress

    progress, working = read_progress(folder), is_held(folder)
    say(console, f"{progress.title}, in {folder}")
    print_table(console, status_table(progress))
    for sentence in status(progress, running=working):
        say(console, sentence)
    goes_on = again(progress.command, folder, verbs) if progress.all.left else None
    document = documents.Standing(
        what=progress.title, folder=str(folder), working=working, done=progress.all.planned - progress.all.left,
        left=progress.all.left, running=[], failed=list(progress.reasons), seconds=progress.seconds,
        seconds_left=progress.seconds_left,
        models=[documents.StandingLine(model=label, **vars(of)) for label, of in progress.models.items()],
    )  # fmt: skip
    return document, goes_on or f"holdfast report {quoted(folder)} --out {quoted(folder / 'report.html')}"


def print_table(console: Console, table: Table) -> None:
    """Print a table of the report: the first column to the left, figures to the right."""
    from rich.table import Table as Grid

    grid = Grid(box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(table.columns):
        grid.add_column(literal(column), justify="left" if index == 0 else "right")
    for row in table.rows:
        grid.add_row(*(literal(entry.text) for entry in row))
    console.print(grid)


def show_plan(console: Console, audit: Audit, workers: int) -> documents.Plan:
    """Print the power of an audit with more or fewer seeds, and its cost; return the same."""
    from holdfast.cli import documents
    from holdfast.cli.display import show_steps
    from holdfast.report.words.status import Planned, plan_table, power, timing
    from holdfast.runs.plan import plan_audit

    with show_steps(console, "timing every attack") as on_step:
        plan = plan_audit(audit, on_step)
    print_table(
        console,
        plan_table(
            [
                Planned(
                    seeds=variant.seeds, runs=variant.runs, detectable=variant.detectable,
                    seconds=variant.seconds / workers, flops=variant.flops, tokens=variant.tokens,
                )
                for variant in plan.variants
            ]
        ),
    )  # fmt: skip
    wanted = next(variant for variant in plan.variants if variant.seeds == audit.seeds)
    sentences = (
        power(wanted.detectable, plan.questions, audit.seeds, len(audit.attacks)),
        timing(plan.measuring, workers),
    )
    for sentence in filter(None, sentences):
        say(console, sentence)
    return documents.Plan(
        seeds=audit.seeds,
        workers=workers,
        attacks=len(audit.attacks),
        questions=plan.questions,
        measuring=plan.measuring,
        variants=[
            documents.PlanLine(
                seeds=variant.seeds,
                runs=variant.runs,
                detectable=variant.detectable.one if variant.detectable else None,
                detectable_suite=variant.detectable.suite if variant.detectable else None,
                seconds=variant.seconds / workers,
                tokens=variant.tokens,
                flops=variant.flops,
            )
            for variant in plan.variants
        ],
    )


def cost_sentence(out: Path, attack: str) -> str:
    """The sentence on the cost of an attack."""
    from holdfast.core.records import read_campaign
    from holdfast.report.words.status import attack_cost
    from holdfast.stats.suspicion import mean_costs

    _, results = read_campaign(out)
    cells = [result for result in results if result.attack == attack]
    updates = max((record.step for result in cells for record in result.records), default=0)
    return attack_cost(updates, mean_costs(cells))


def confirmed_sentence(outcome: Found) -> str:
    """The sentence on a confirmed search: its hazard on the selection and on the claim questions, and its ability."""
    from holdfast.report.words.status import confirmed
    from holdfast.runs.search.trial import attack_name, attack_of

    winner, claim = outcome.winner, outcome.confirmed
    return confirmed(
        attack_name(winner), winner.hazard, claim.hazard, claim.interval, claim.step, claim.ability_before, claim.ability,
        seeds=claim.seeds if attack_of(winner).draws else None, failed=claim.failed, kept=claim.kept,
    )  # fmt: skip


def finish(console: Console, out: Path) -> documents.Audit:
    """Write the report; print the verdicts, the verdict table and the report's path, and return the same.

    Raises:
        HoldfastError: no cell succeeded.
    """
    from holdfast.core.findings import read_findings
    from holdfast.core.records import read_campaign
    from holdfast.report.page import build_report
    from holdfast.report.words.data import objections

    plan, results = read_campaign(out)
    if all(result.status == "failed" for result in results):
        fail(f"every cell failed, the first because: {results[0].reason}")
    page = out / "report.html"
    [section] = build_report([out], page).sections
    print_verdicts(console, section.title, section.rows)
    for finding in section.findings:
        say(console, finding.headline)
    for sentence in objections(read_findings(plan.details)):
        say(console, sentence)
    say(console, f"The report is {page}")
    return described(section, out, page)


def print_verdicts(console: Console, title: str, rows: Sequence[VerdictRow]) -> None:
    """Print the verdict table of an audit, a row a model."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # In 80 columns a name such as "random-mapping" has to stand in one line.
    table = Table(title=literal(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    wide = console.width >= WIDE
    for column in ("model", "verdict", *(("worst attack",) if wide else ())):
        table.add_column(column, overflow="fold")
    for column in ("hazard\nbefore", "mean\nafter", "worst\nhazard", "ability\nthere", "\nresisted"):
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        names = (row.model, row.verdict, *((row.worst_attack,) if wide else ()))
        table.add_row(*map(literal, (*names, row.before, row.mean, row.worst, row.ability, row.resisted)))
    console.print(table)


def described(section: Section, folder: Path, page: Path) -> documents.Audit:
    """The verdicts and figures of one audit, as `--json` prints them.

    Args:
        section: of the page.
        folder: of the audit.
        page: the report.
    """
    from holdfast.cli import documents
    from holdfast.report.words.data import objections

    summary = section.audit.summary
    return documents.Audit(
        title=section.title,
        folder=str(folder),
        report=str(page),
        hazard_metric=summary.hazard.metric,
        ability_metric=summary.ability.metric,
        verdicts=[documents.VerdictLine(**vars(finding)) for finding in section.findings],
        models=[_model_line(row, section.audit.figures.of(row.model).worst) for row in section.rows],
        noticed=objections(section.audit.data),
        failed=[result.reason for result in section.audit.results if result.status == "failed"],
    )


def _model_line(row: VerdictRow, worst: Reached | None) -> documents.ModelLine:
    from holdfast.cli import documents

    model = row.summary
    return documents.ModelLine(
        model=row.model,
        role=row.role,
        verdict=model.verdict if row.verdict else None,
        hazard_before=model.before.value if model.before else None,
        hazard_mean=model.all.mean,
        hazard_worst=worst.hazard if worst else None,
        worst_attack=row.worst_attack if worst else None,
        ability_before=model.ability_before,
        ability_after=worst.ability if worst else None,
        resisted=model.resisted,
        counted=model.counted,
    )


def say_tracked(console: Console, tools: Sequence[str], folder: Path) -> None:
    """Say how to look at what the tracking tools hold."""
    from holdfast.core.tracking import where_to_look

    for tool, look in where_to_look(tools, folder).items():
        say(console, f"Tracked with {tool}" + (f": {look}" if look else ""))


def say_profiled(console: Console, folder: Path) -> None:
    """Say where the traces of a run are."""
    from holdfast.core.profiling import TRACE

    traces = sorted(folder.glob(f"*{TRACE}"))
    for trace in traces:
        say(console, f"The trace of the first updates is in {trace}; a table of operations stands beside this file")
    if not traces:
        say(
            console,
            "No update was made, so there is no trace; give --out another folder and --set or --seed another value",
        )


def check_cells(folder: Path) -> None:
    """Check that a command which ran a campaign did all that it was asked.

    Raises:
        HoldfastError: a cell failed.
    """
    from holdfast.core.records import read_campaign

    _, results = read_campaign(folder)
    fail_if(failures(folder), f"of {len(results)} cells")


def failures(folder: Path) -> list[str]:
    """Why cells of a campaign failed, a sentence a cell."""
    from holdfast.core.records import read_campaign

    _, results = read_campaign(folder)
    return [result.reason for result in results if result.status == "failed"]


def fail_if(reasons: Sequence[str], of: str) -> None:
    """Raises:
    HoldfastError: there are reasons why something failed.
    """
    if reasons:
        fail(f"{len(reasons)} {of} failed, the first because: {reasons[0]}; run the same command again to try anew")
