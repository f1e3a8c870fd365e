"""Verbs that measure: attack, evaluate, audit, search, study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import FailOnOption, JsonOption, command_of, end, exit_on
from holdfast.cli.executors import ClusterOption, ExecutorOption, workers_of
from holdfast.cli.fit import warn_of_size
from holdfast.cli.options import (
    DeviceOption,
    DomainOption,
    EvaluationsOption,
    JudgeModelOption,
    JudgeUrlOption,
    KeepOption,
    MatmulOption,
    MicroBatchOption,
    MilestonesOption,
    ModelOption,
    OutOption,
    PluginsOption,
    PrecisionOption,
    ProfileOption,
    ReleaseOption,
    RemoteCodeOption,
    ResumableOption,
    SeedOption,
    SetOption,
    StatusOption,
    ThreadsOption,
    TrackOption,
    WorkersOption,
    check_device,
    judge_at,
    model_label,
    names_in,
    run_options,
    start_torch,
)
from holdfast.cli.options_file import read_options
from holdfast.cli.say import (
    check_cells,
    confirmed_sentence,
    cost_sentence,
    fail_if,
    failures,
    finish,
    say_profiled,
    say_tracked,
    show_plan,
)
from holdfast.cli.terminal import literal, make_console, quoted, say
from holdfast.core.outside import load_plugins
from holdfast.core.profiling import profile_folder
from holdfast.core.tracking import tracking_folder


def study(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            autocompletion=complete.studies,
            help="paper-tables, ablations, red-team, claims, real, real-refusals, or a study of a plug-in's.",
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
    chosen = replace(chosen, options=replace(chosen.options, device=device))
    hours = chosen.core_seconds / workers / 3600
    say(console, f"{name}: about {hours:.1f} hours with {workers} processes, from nothing")
    if estimate:
        rows = "".join(f" --only {quoted(label)}" for label in only or ())
        command = f"holdfast study {quoted(name)}{rows} --out {quoted(out)}"
        end(context, console, documents.Estimate(study=name, hours=hours, workers=workers), command)
        return
    with show_jobs(console, name) as on_progress:
        where = workers_of(executor, cluster, workers, out)
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


def attack(
    context: typer.Context,
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            autocompletion=complete.attacks,
            help="Attack preset; `holdfast list attacks` shows them.",
        ),
    ],
    model: ModelOption,
    domain: DomainOption,
    out: OutOption,
    base: Annotated[
        Optional[str],
        typer.Option("--base", help="The model before any safeguard, for attacks that need it; default: the card's."),
    ] = None,
    seed: SeedOption = 0,
    executor: ExecutorOption = "local",
    cluster: ClusterOption = None,
    milestones: MilestonesOption = None,
    evaluations: EvaluationsOption = None,
    judge_url: JudgeUrlOption = None,
    judge_model: JudgeModelOption = None,
    settings: SetOption = None,
    plugins: PluginsOption = None,
    keep_attacked_weights: KeepOption = False,
    resumable_attacks: ResumableOption = False,
    track: TrackOption = None,
    profile: ProfileOption = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    micro_batch: MicroBatchOption = None,
    matmul: MatmulOption = "torch",
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one attack on one model and measure the model along the way."""
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.campaign.cells import parse_milestones
    from holdfast.cli.display import show_jobs
    from holdfast.core.presets import pick
    from holdfast.core.settings import with_settings
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.runs.attack import original_of, run_attack
    from holdfast.runs.fitting import suite_for
    from holdfast.runs.named import named_evaluations

    judge = judge_at(judge_url, judge_model)
    asked: dict[str, Any] = {**named_evaluations(evaluations or [], domain, judge)}
    (name, chosen), *also = with_settings({preset: pick("holdfast.attacks", preset), **asked}, settings or []).items()
    where = workers_of(executor, cluster, 1, out)
    options = run_options(
        device,
        precision,
        trust_remote_code,
        keep_attacked_weights,
        resumable_attacks,
        track,
        micro_batch,
        matmul,
        profile,
        elsewhere=executor != "local",
    )
    warn_of_size(console, model, "attacks", [name])
    original = original_of(chosen, model, base)
    if original.path:
        say(console, f"The original model is {original.path}: {original.source}.")
    with show_jobs(console, f"{name} on {model_label(model)}") as on_progress:
        run_attack(
            name, chosen, model, model_label(model), domain, out, base=original.path, seed=seed,
            milestones=parse_milestones(milestones) if milestones else None, also=tuple(also),
            options=options, workers=where, command=command_of(context), on_progress=on_progress,
        )  # fmt: skip
    document = finish(console, out)
    say_tracked(console, options.track, tracking_folder(out))
    if profile:
        say_profiled(console, profile_folder(out))
    say(console, cost_sentence(out, name))
    undefended = base or Checkpoint(model).card.get("base", {}).get("path", "THE-ORIGINAL-MODEL")
    command = (
        f"holdfast audit --model {quoted(model)} --undefended {quoted(undefended)} --domain {quoted(domain)} "
        f"--suite {suite_for(model)} --seeds 5 --out {quoted(out.parent / 'audit')}"
    )
    end(context, console, document, None if document.failed else command)
    check_cells(out)


def evaluate_(
    context: typer.Context,
    model: ModelOption,
    domain: DomainOption,
    out: Annotated[Optional[Path], typer.Option("--out", help="Also write the scores to this JSON file.")] = None,
    evaluations: EvaluationsOption = None,
    judge_url: JudgeUrlOption = None,
    judge_model: JudgeModelOption = None,
    settings: SetOption = None,
    plugins: PluginsOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    threads: ThreadsOption = 1,
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model without an attack: hazard, abilities, held-out loss, degeneracy, how well the model learns."""
    console = make_console()
    load_plugins(*plugins or ())
    from rich.table import Table

    from holdfast.cli import documents
    from holdfast.core.settings import with_settings
    from holdfast.report.words.data import objections
    from holdfast.runs.evaluate import claim_scores, evaluate, noticed, write_scores
    from holdfast.runs.fitting import attack_for
    from holdfast.runs.named import named_evaluations

    if out is not None:
        claim_scores(out)
    start_torch(threads, device, precision)
    table = Table(title=literal(f"{model_label(model)} on {domain}"), box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("evaluation", "measures", "metric", "value", "± s.e.", "n", "chance"):
        left = column in ("evaluation", "measures", "metric")
        table.add_column(literal(column), justify="left" if left else "right", no_wrap=True)
    judge = judge_at(judge_url, judge_model)
    also = with_settings(named_evaluations(evaluations or [], domain, judge), settings or [])
    results = evaluate(model, domain, run_options(device, precision, trust_remote_code), also)
    for measured in results:
        for score in measured.scores:
            numbers = ("" if value is None else f"{value:.3g}" for value in (score.value, score.stderr))
            chance = "" if score.chance is None else f"{score.chance:.3g}"
            cells = (measured.evaluation, measured.measures, score.metric, *numbers, str(score.n), chance)
            table.add_row(*map(literal, cells))
    console.print(table)
    sentences = objections(noticed(model, domain, trust_remote_code))
    for sentence in sentences:
        say(console, sentence)
    if out is not None:
        write_scores(out, results)
    lines = [
        documents.ScoreLine(evaluation=measured.evaluation, measures=measured.measures, **vars(score))
        for measured in results
        for score in measured.scores
    ]
    end(
        context,
        console,
        documents.Scores(model=model, domain=str(domain), scores=lines, noticed=sentences),
        f"holdfast attack {attack_for(model)} --model {quoted(model)} --domain {quoted(domain)} --out runs/attack",
    )


def audit(
    context: typer.Context,
    model: ModelOption,
    undefended: Annotated[str, typer.Option("--undefended", help="The model before any safeguard.")],
    domain: DomainOption,
    out: OutOption,
    never_exposed: Annotated[
        Optional[str], typer.Option("--never-exposed", help="A control that never learned the hazard.")
    ] = None,
    reference: Annotated[
        Optional[str], typer.Option("--reference", help="A shallow safeguard to compare with; attacks must break it.")
    ] = None,
    peer: Annotated[
        Optional[list[str]], typer.Option("--peer", help="Another safeguarded model to compare with; repeatable.")
    ] = None,
    file: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="[FILE]",
            is_eager=True,
            callback=read_options,
            help="TOML file of the options below, without dashes before them; what is given here goes before it.",
        ),
    ] = None,
    suite: Annotated[
        Optional[str],
        typer.Option(
            "--suite",
            autocompletion=complete.suites,
            help="Attack suite (`holdfast list suites`), a TOML file, or a folder that search wrote; default: quick-2, "
            "quick-small or quick-large, by the model's size.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Attack seeds: 0, 1, … up to this many; 5 or more give intervals.")
    ] = 5,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Only say what the audit could detect, how long it would take and what it would cost."
        ),
    ] = False,
    status: StatusOption = None,
    without_base: Annotated[
        bool,
        typer.Option(
            "--without-base",
            help="The attacker does not have the undefended model: leave out the attacks that need it, and say so.",
        ),
    ] = False,
    sibling: Annotated[
        Optional[str],
        typer.Option(
            "--sibling",
            help="What the attacker holds in place of the undefended model: an earlier revision, another fine-tune or a "
            "quantised copy of it. Attacks that need the undefended model read this model, and the report says so.",
        ),
    ] = None,
    stop_after_breach: Annotated[
        Optional[int],
        typer.Option(
            "--stop-after-breach",
            min=1,
            help="End an attack so many milestones after half of the hazard is back; recorded with every such run. "
            "Off by default.",
        ),
    ] = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = 2,
    cluster: ClusterOption = None,
    milestones: MilestonesOption = None,
    evaluations: EvaluationsOption = None,
    judge_url: JudgeUrlOption = None,
    judge_model: JudgeModelOption = None,
    settings: SetOption = None,
    plugins: PluginsOption = None,
    keep_attacked_weights: KeepOption = False,
    resumable_attacks: ResumableOption = False,
    track: TrackOption = None,
    release: ReleaseOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    micro_batch: MicroBatchOption = None,
    matmul: MatmulOption = "torch",
    trust_remote_code: RemoteCodeOption = False,
    fail_on: FailOnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack a safeguarded model and its controls with a suite, and report. The same command continues a stopped run."""
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.campaign.cells import parse_milestones
    from holdfast.cli.display import show_jobs
    from holdfast.core.export import write_records
    from holdfast.core.release import keep_release, read_release
    from holdfast.core.settings import with_settings
    from holdfast.evals.base import Evaluation
    from holdfast.runs.audit import Audit
    from holdfast.runs.fitting import suite_for
    from holdfast.runs.named import named_evaluations
    from holdfast.runs.suites import attacks_of

    suite = suite or suite_for(model)
    judge = judge_at(judge_url, judge_model)
    named: dict[str, Any] = {**attacks_of(suite), **named_evaluations(evaluations or [], domain, judge)}
    changed = with_settings(named, settings or [])
    also = {name: plugin for name, plugin in changed.items() if isinstance(plugin, Evaluation)}
    chosen = {name: plugin for name, plugin in changed.items() if name not in also}
    warn_of_size(console, model, "attacks", chosen)
    audited = Audit(
        model=model,
        undefended=undefended,
        reference=reference,
        never_exposed=never_exposed,
        peers=tuple(peer or ()),
        domain=domain,
        suite=suite,
        attacks=chosen,
        seeds=seeds,
        milestones=parse_milestones(milestones) if milestones else None,
        stop_after_breach=stop_after_breach,
        base=not without_base,
        sibling=sibling,
        also=tuple(also.items()),
        options=run_options(
            device,
            precision,
            trust_remote_code,
            keep_attacked_weights,
            resumable_attacks,
            track,
            micro_batch,
            matmul,
            elsewhere=executor != "local",
        ),
    )
    where = workers_of(executor, cluster, workers, out)
    if release is not None:
        read_release(release).check([held.label for held in audited.models()])
    title = f"Audit of {model_label(model)}"
    if plan:
        audited.check()
        end(context, console, show_plan(console, audited, workers), command_of(context, "plan", "as_json", "file"))
        return
    with show_jobs(console, title) as on_progress:
        audited.run(
            out,
            where,
            command=command_of(context, "file"),
            on_progress=on_progress,
        )
    write_records(out, out / "records.parquet")
    if release is not None:
        keep_release(release, out)
    document = finish(console, out)
    say_tracked(console, audited.options.track, tracking_folder(out))
    command = f"holdfast card {quoted(out)} --out {quoted(out / 'card.md')}"
    end(context, console, document, None if document.failed else command)
    check_cells(out)
    exit_on(console, fail_on, [(verdict.model, verdict.verdict) for verdict in document.verdicts])


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
    status: StatusOption = None,
    plugins: PluginsOption = None,
    seed: SeedOption = 0,
    track: TrackOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    micro_batch: MicroBatchOption = None,
    matmul: MatmulOption = "torch",
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
            elsewhere=executor != "local",
        ),
    )
    where = workers_of(executor, cluster, workers, out)
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
