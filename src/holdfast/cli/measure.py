"""Verbs that measure a model: attack, evaluate, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import FailOnOption, JsonOption, command_of, end, exit_on
from holdfast.cli.executors import ClusterOption, ExecutorOption, RanksOption, workers_of
from holdfast.cli.fit import warn_of_size
from holdfast.cli.memory import Planned, memory_of_worker, settle_memory
from holdfast.cli.options import (
    CheckpointingOption,
    DeviceOption,
    DomainOption,
    EvaluationsOption,
    JudgeModelOption,
    JudgeUrlOption,
    KeepOption,
    MatmulOption,
    MemoryOption,
    MemoryPlanOption,
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
    judge_at,
    model_label,
    run_options,
    start_torch,
)
from holdfast.cli.options_file import read_options
from holdfast.cli.say import (
    check_cells,
    cost_sentence,
    finish,
    say_profiled,
    say_tracked,
    show_plan,
)
from holdfast.cli.terminal import fail, literal, make_console, quoted, say
from holdfast.core.outside import load_plugins
from holdfast.core.profiling import profile_folder
from holdfast.core.tracking import tracking_folder


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
    ranks: RanksOption = 1,
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
    checkpointing: CheckpointingOption = False,
    memory: MemoryOption = None,
    plan: MemoryPlanOption = False,
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one attack on one model and measure the model along the way."""
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.campaign.cells import parse_milestones
    from holdfast.cli.display import show_jobs
    from holdfast.core.presets import describe, pick
    from holdfast.core.settings import with_settings
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.runs.attack import original_of, run_attack
    from holdfast.runs.fitting import suite_for
    from holdfast.runs.knobs import Choice
    from holdfast.runs.memory import plan_of_attack
    from holdfast.runs.named import named_evaluations

    judge = judge_at(judge_url, judge_model)
    asked: dict[str, Any] = {**named_evaluations(evaluations or [], domain, judge, ranks)}
    (name, chosen), *also = with_settings({preset: pick("holdfast.attacks", preset), **asked}, settings or []).items()
    where = workers_of(executor, cluster, 1, out, ranks, device)
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
        checkpointing=checkpointing,
        elsewhere=executor != "local",
        ranks=ranks,
    )
    warn_of_size(console, model, "attacks", [name])
    original = original_of(chosen, model, base)
    if original.path:
        say(console, f"The original model is {original.path}: {original.source}.")
    if (memory or plan) and ranks > 1:
        fail(
            "--memory and --plan look at a model that is not split over several processes; leave them out with --ranks"
        )
    if executor == "local" and ranks == 1:
        foretold = Planned(
            verb="attack",
            model=model,
            plugins=[chosen],
            plan=lambda options: [plan_of_attack(name, chosen, model, domain, base=original.path, options=options)],
            choice=Choice(
                lambda: [describe(chosen), Checkpoint(model).digest, str(domain.resolve()), options.arithmetic]
            ),
        )
        options, planned = settle_memory(console, foretold, options, memory, plan)
        if planned is not None:
            end(context, console, planned, None)
            return
    elif memory or plan:
        fail(f"--memory and --plan look at the memory of this machine; leave them out with --executor {executor}")
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
    from holdfast.cli.display import show_steps
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
    with show_steps(console, f"evaluations of {model_label(model)}") as on_step:
        results = evaluate(model, domain, run_options(device, precision, trust_remote_code), also, on_step)
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
    ranks: RanksOption = 1,
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
    checkpointing: CheckpointingOption = False,
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
    named: dict[str, Any] = {**attacks_of(suite), **named_evaluations(evaluations or [], domain, judge, ranks)}
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
            checkpointing=checkpointing,
            elsewhere=executor != "local",
            ranks=ranks,
        ),
    )
    where = workers_of(
        executor, cluster, workers, out, ranks, device, lambda: memory_of_worker(console, audited.planned())
    )
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
