"""Verbs that try many things and compare them: search, study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import JsonOption, command_of, end
from holdfast.cli.executors import ClusterOption, ExecutorOption, RanksOption, workers_of
from holdfast.cli.memory import memory_of_search, memory_of_study
from holdfast.cli.options import (
    CheckpointingOption,
    DeviceOption,
    DomainOption,
    MatmulOption,
    MicroBatchOption,
    ModelOption,
    OutOption,
    PluginsOption,
    PrecisionOption,
    RemoteCodeOption,
    SeedOption,
    StatusOption,
    TrackOption,
    WorkersOption,
    check_device,
    model_label,
    names_in,
    run_options,
)
from holdfast.cli.say import (
    check_cells,
    confirmed_sentence,
    fail_if,
    failures,
    say_tracked,
)
from holdfast.cli.terminal import literal, make_console, quoted, say
from holdfast.core.outside import load_plugins
from holdfast.core.tracking import tracking_folder


def study(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            autocompletion=complete.studies,
            help="paper-tables, ablations, red-team, claims, refusals, low-rank, reteach, real, real-refusals, or a "
            "plug-in's study.",
        ),
    ] = "paper-tables",
    out: OutOption = Path("runs/study"),
    only: Annotated[
        Optional[list[str]],
        typer.Option(
            "--only", metavar="METHOD", help="Make this row of a table of safeguards, and no other; repeatable."
        ),
    ] = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = 2,
    cluster: ClusterOption = None,
    ranks: RanksOption = 1,
    device: DeviceOption = "cpu",
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how long the study would take.")] = False,
    status: StatusOption = None,
    plugins: PluginsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare safeguards or families of attack on the testbed in one table. The same command continues a stopped run."""
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.cli import documents
    from holdfast.cli.display import show_jobs
    from holdfast.recipes.run import pick_study, run_study

    chosen = pick_study(name, only or ())
    if device != "cpu":  # asking for a GPU loads torch
        check_device(device)
    chosen = replace(chosen, options=replace(chosen.options, device=device, ranks=ranks))
    hours = chosen.core_seconds / workers / 3600
    say(console, f"{name}: about {hours:.1f} hours with {workers} processes, from nothing")
    if estimate:
        rows = "".join(f" --only {quoted(label)}" for label in only or ())
        command = f"holdfast study {quoted(name)}{rows} --out {quoted(out)}"
        end(context, console, documents.Estimate(study=name, hours=hours, workers=workers), command)
        return
    where = workers_of(executor, cluster, workers, out, ranks, device, lambda: memory_of_study(console, chosen))
    with show_jobs(console, name) as on_progress:
        outcomes = run_study(name, chosen, out, where, command_of(context), on_progress)
    for line in (out / "tables.md").read_text(encoding="utf-8").splitlines():
        say(console, line)
    failed = [f"{outcome.job.name}: {outcome.error}" for outcome in outcomes if outcome.error is not None]
    for sentence in failed:
        say(console, sentence)
    say(console, f"The tables are in {out / 'tables.md'}")
    figures = json.loads((out / "tables.json").read_bytes())
    document = documents.Study(study=name, tables=str(out / "tables.md"), figures=figures, failed=failed)
    command = f"holdfast report {quoted(chosen.first_folder(out))} --out {quoted(out / 'report.html')}"
    end(context, console, document, None if failed else command)
    fail_if(failed, f"of {len(outcomes)} jobs")


def search(
    context: typer.Context,
    model: ModelOption,
    undefended: Annotated[str, typer.Option("--undefended", help="The model before any safeguard.")],
    domain: DomainOption,
    out: OutOption,
    families: Annotated[
        Optional[str],
        typer.Option(
            "--families",
            autocompletion=complete.families,
            help="Families to search, such as full,low-rank; default: all for models of that size.",
        ),
    ] = None,
    hold_out: Annotated[
        Optional[str],
        typer.Option(
            "--hold-out",
            autocompletion=complete.families,
            help="Families to leave out, so that they stay blind for this model.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Attacks to try.")] = 40,
    steps: Annotated[Optional[int], typer.Option("--steps", min=1, help="Updates that all trials may take.")] = None,
    tokens: Annotated[Optional[int], typer.Option("--tokens", min=1, help="Tokens that all trials may read.")] = None,
    flops: Annotated[
        Optional[float], typer.Option("--flops", help="FLOPs that all trials may take, such as 1e15.")
    ] = None,
    ability_loss: Annotated[
        float, typer.Option("--ability-loss", help="How much ability an attack may cost, as a fraction.")
    ] = 0.05,
    confirm_seeds: Annotated[int, typer.Option("--confirm-seeds", min=5, help="Fresh seeds of the confirmation.")] = 5,
    reference: Annotated[
        Optional[str], typer.Option("--reference", help="A shallow safeguard for the confirmation to compare with.")
    ] = None,
    never_exposed: Annotated[
        Optional[str],
        typer.Option("--never-exposed", help="A control that never learned the hazard, for the confirmation."),
    ] = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = 2,
    cluster: ClusterOption = None,
    ranks: RanksOption = 1,
    status: StatusOption = None,
    plugins: PluginsOption = None,
    seed: SeedOption = 0,
    track: TrackOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    micro_batch: MicroBatchOption = None,
    matmul: MatmulOption = "torch",
    checkpointing: CheckpointingOption = False,
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the attack that recovers most while ability is kept, and confirm it. Continues a stopped run."""
    console = make_console()
    load_plugins(*plugins or ())
    from rich.table import Table

    from holdfast.cli import documents
    from holdfast.cli.display import show_jobs
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.report.page import build_report
    from holdfast.report.studies.search_plot import draw_search
    from holdfast.runs.audit import models_of
    from holdfast.runs.search.attacker import search_and_confirm
    from holdfast.runs.search.search import Budget, Search, usable_families

    held_out = names_in(hold_out)
    chosen = Search(
        model=model,
        base=undefended,
        domain=domain,
        families=usable_families(names_in(families), held_out, Checkpoint(model).size),
        budget=Budget(trials=trials, steps=steps, tokens=tokens, flops=flops),
        ability_loss=ability_loss,
        seed=seed,
        options=run_options(
            device,
            precision,
            trust_remote_code,
            track=track,
            micro_batch=micro_batch,
            matmul=matmul,
            checkpointing=checkpointing,
            elsewhere=executor != "local",
            ranks=ranks,
        ),
    )
    where = workers_of(executor, cluster, workers, out, ranks, device, lambda: memory_of_search(console, chosen))
    with show_jobs(console, f"search, {len(chosen.families)} families") as on_progress:
        outcome = search_and_confirm(
            chosen, out, models_of(model, undefended, reference, never_exposed), label=model_label(model),
            held_out=held_out, seeds=confirm_seeds, workers=where, command=command_of(context), on_progress=on_progress,
        )  # fmt: skip
    draw_search(outcome.description, out / "search.svg")
    page = out / "confirmation" / "report.html"
    build_report([out / "confirmation"], page)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("family", "trials", "hazard", "ability", "kept", "updates", "tokens", "FLOPs"):
        left = column == "family"
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for family, trial in outcome.best.items():
        count = sum(other.family == family for other in outcome.trials)
        figures = (f"{100 * trial.hazard:.0f} %", f"{100 * trial.ability:.0f} %", "yes" if trial.feasible else "no")
        cells = (family, str(count), *figures, f"{trial.steps:,}", f"{trial.tokens:,}", f"{trial.flops:.1e}")
        table.add_row(*map(literal, cells))
    console.print(table)
    ended = f"ended by the budget of {outcome.description['ended_by']}"
    if held_out:
        ended += f"; held out: {', '.join(held_out)}"
    say(console, f"{len(outcome.trials)} attacks tried on selection questions, {ended}.")
    say(console, confirmed_sentence(outcome))
    say_tracked(console, chosen.options.track, tracking_folder(out))
    say(console, f"Every trial is in {out / 'search.json'}, the picture in {out / 'search.svg'}")
    failed = failures(out / "confirmation")
    command = (
        f"holdfast audit --model {quoted(model)} --undefended {quoted(undefended)} --domain {quoted(domain)} "
        f"--suite {quoted(out)} --seeds 5 --out {quoted(out.parent / 'audit-found')}"
    )
    document = documents.Search(folder=str(out), report=str(page), search=outcome.description, failed=failed)
    end(context, console, document, None if failed else command)
    check_cells(out / "confirmation")
