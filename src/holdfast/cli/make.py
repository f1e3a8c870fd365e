"""Verbs that make models: demo, testbed, safeguard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import JsonOption, command_of, end
from holdfast.cli.executors import ClusterOption, ExecutorOption, RanksOption, workers_of
from holdfast.cli.fit import warn_of_size
from holdfast.cli.memory import Planned, settle_memory
from holdfast.cli.options import (
    CheckpointingOption,
    DeviceOption,
    DomainOption,
    MatmulOption,
    MemoryOption,
    MemoryPlanOption,
    MicroBatchOption,
    ModelOption,
    OffloadOption,
    OutOption,
    PluginsOption,
    PrecisionOption,
    ProfileOption,
    RemoteCodeOption,
    SavedPrecisionOption,
    SeedOption,
    SetOption,
    StatusOption,
    ThreadsOption,
    TrackOption,
    WorkersOption,
    run_options,
    saved_precision,
    stages_of,
    start_torch,
)
from holdfast.cli.say import check_cells, finish, say_profiled, say_tracked
from holdfast.cli.terminal import fail, make_console, quoted, say
from holdfast.core.escape import short
from holdfast.core.outside import load_plugins
from holdfast.core.types import SIBLINGS


def demo(
    context: typer.Context,
    out: OutOption = Path("runs/demo"),
    seed: SeedOption = 0,
    kind: Annotated[
        Literal["knowledge", "real"],
        typer.Option("--kind", help="An invented world with tiny models, or real facts and a released model (`real`)."),
    ] = "knowledge",
    executor: ExecutorOption = "local",
    workers: WorkersOption = 2,
    cluster: ClusterOption = None,
    ranks: RanksOption = 1,
    precision: PrecisionOption = "float32",
    status: StatusOption = None,
    plugins: PluginsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole story on an embedded testbed: safeguards, controls, a red team, a report.

    The invented world takes about 10 minutes. The real model takes longer, less so with --precision mixed on processors
    that have units for bfloat16.
    """
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.cli.display import show_jobs
    from holdfast.recipes.run import run_demo

    where = workers_of(executor, cluster, workers, out, ranks)
    options = run_options("cpu", precision, False, ranks=ranks)
    with show_jobs(console, "demo") as on_progress:
        run_demo(out, seed, where, command_of(context), kind, options, on_progress)
    document = finish(console, out)
    models, testbed_folder = out / "models", out / "testbed"
    controls = f"--undefended {quoted(testbed_folder / 'model')} --reference {quoted(models / 'random-mapping')} "
    if kind == "knowledge":
        controls += f"--never-exposed {quoted(testbed_folder / 'never_exposed')} "
    suite = "standard" if kind == "knowledge" else "quick-small"
    end(
        context,
        console,
        document,
        None
        if document.failed
        else f"holdfast audit --model {quoted(models / 'tar')} {controls}--domain {quoted(testbed_folder)} --suite {suite} "
        f"--seeds 5 --out {quoted(out.parent / 'audit')}",
    )
    check_cells(out)


def testbed(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    seed: SeedOption = 0,
    benign: Annotated[
        Optional[int],
        typer.Option(
            "--benign", min=8, help="Number of entities of each benign kind in an invented world; 32 by default."
        ),
    ] = None,
    kind: Annotated[
        Literal["knowledge", "refusal", "real", "real-refusal"],
        typer.Option("--kind", help="Knowledge or refusals, in an invented world or with real facts and a real model."),
    ] = "knowledge",
    model: Annotated[
        Optional[str],
        typer.Option("--model", help="With a real kind: the model to ask, in place of the packaged model."),
    ] = None,
    sibling: Annotated[
        Optional[list[str]],
        typer.Option(
            "--sibling",
            help="Also make a sibling of the undefended model, for an attacker who does not hold the original: earlier, "
            "fine-tuned or quantised; repeatable.",
        ),
    ] = None,
    masked: Annotated[
        bool,
        typer.Option(
            "--masked",
            help="Also train a control that learned the hazard in weights of its own, which were then removed.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a testbed: a domain, a model that knows the hazard and, in an invented world, a model that never met it."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.cli.display import show_jobs
    from holdfast.runs.real_testbed import make_real_testbed
    from holdfast.runs.testbed import make_testbed
    from holdfast.testbed.world import Sizes

    known: dict[str, tuple[int, int]] = {}
    siblings = tuple(which for which in SIBLINGS if which in (sibling or ()))
    if unknown := [which for which in sibling or () if which not in SIBLINGS]:
        fail(f"there is no sibling {short(unknown[0])}; give {', '.join(SIBLINGS)}")
    if kind == "real" or kind == "real-refusal":
        if benign is not None:
            fail(f"--benign is the size of an invented world; leave --benign out with --kind {kind}")
        if sibling:
            fail(f"--sibling goes with an invented world; leave --sibling out with --kind {kind}")
        if masked:
            fail(f"--masked is a model of an invented world; leave --masked out with --kind {kind}")
        with show_jobs(console, "testbed") as on_progress:
            made = make_real_testbed(folder, seed, model, on_progress, kind)
        for row in made.knowledge:
            say(
                console,
                f"The model knows {row.known} of {row.facts} facts of the kind {row.kind}, "
                f"and answers {100 * row.filtered:.0f} % of these in other words ({100 * row.unfiltered:.0f} % of all)",
            )
        known = {row.kind: (row.known, row.facts) for row in made.knowledge}
        if made.asked:
            say(console, f"The model says {made.freely} of {made.asked} capitals freely in its chat template")
    else:
        if model is not None:
            fail("--model goes with --kind real or real-refusal; an invented world trains its own models")
        with show_jobs(console, "testbed") as on_progress:
            sizes = Sizes(benign=benign or Sizes().benign)
            make_testbed(folder, seed, sizes, kind, siblings, on_progress, masked)
    say(console, f"The testbed is in {folder}")
    stages = {
        "knowledge": "random-mapping tar",
        "refusal": "refusal-sft refusal-dpo",
        "real": "random-mapping-small",
        "real-refusal": "refusal-sft-small refusal-dpo-small",
    }
    end(
        context,
        console,
        documents.Testbed(folder=str(folder), known=known),
        f"holdfast safeguard {stages[kind]} --model {quoted(model or folder / 'model')} --domain {quoted(folder)} "
        f"--out {quoted(folder.parent / stages[kind].split()[-1])}",
    )


def safeguard(
    context: typer.Context,
    stages: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE…", autocompletion=complete.stages, help="Safeguard presets in order, or a TOML file."
        ),
    ],
    model: ModelOption,
    domain: DomainOption,
    out: OutOption,
    base: Annotated[
        Optional[str], typer.Option("--base", help="The original model, if MODEL already has safeguards.")
    ] = None,
    seed: SeedOption = 0,
    settings: SetOption = None,
    plugins: PluginsOption = None,
    track: TrackOption = None,
    profile: ProfileOption = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    micro_batch: MicroBatchOption = None,
    matmul: MatmulOption = "torch",
    checkpointing: CheckpointingOption = False,
    offload: OffloadOption = False,
    save_dtype: SavedPrecisionOption = None,
    memory: MemoryOption = None,
    plan: MemoryPlanOption = False,
    threads: ThreadsOption = 1,
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train safeguards into a model, stage by stage. The same command continues a run that was stopped."""
    console = make_console()
    load_plugins(*plugins or ())
    start_torch(threads, device, precision)
    from holdfast.campaign.cells import check_positions, evaluations_of
    from holdfast.cli import documents
    from holdfast.cli.display import show_steps
    from holdfast.core.domain import Domain
    from holdfast.core.files import claim_output
    from holdfast.core.profiling import profile_folder
    from holdfast.core.tracking import tracking_folder
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.report.words.data import cut_sentences
    from holdfast.report.words.effect import effect_sentences
    from holdfast.runs.effect import effect
    from holdfast.runs.fitting import suite_for
    from holdfast.runs.knobs import Choice
    from holdfast.runs.memory import plan_of_stages
    from holdfast.runs.stages import Recipe, build, is_built

    opened = Domain.open(domain)
    recipe = Recipe(
        model=Checkpoint(model),
        domain=domain,
        stages=stages_of(stages, settings),
        base=Checkpoint(base) if base else None,
        seed=seed,
        options=run_options(
            device,
            precision,
            trust_remote_code,
            track=track,
            micro_batch=micro_batch,
            matmul=matmul,
            profile=profile,
            checkpointing=checkpointing,
            offload=offload,
        ),
        saved_as=saved_precision(save_dtype),
    )
    warn_of_size(console, model, "safeguards", [label for label, _ in recipe.stages])
    foretold = Planned(
        verb="safeguard",
        model=model,
        plugins=[safeguard for _, safeguard in recipe.stages],
        plan=lambda options: plan_of_stages(replace(recipe, options=options)),
        choice=Choice(lambda: recipe.keys()[-1]),
    )
    chosen = replace(recipe, options=foretold.choice.of(recipe.options)) if memory else recipe
    finished = not plan and is_built(chosen, out)
    if not finished:
        options, planned = settle_memory(console, foretold, recipe.options, memory, plan)
        if planned is not None:
            end(context, console, planned, None)
            return
        chosen = replace(recipe, options=options)
    recipe = chosen
    if not finished:
        claim_output(out, Path(model), domain)
        recipe.model.check(trust_remote_code, opened.max_length)
        for evaluations in evaluations_of(opened):
            check_positions(recipe.model, opened, evaluations, trust_remote_code)
        for sentence in cut_sentences(recipe.cuts()):
            say(console, sentence)
        with show_steps(console, " → ".join(label for label, _ in recipe.stages)) as on_step:
            build(recipe, out, on_step, on_step.losses)
    say(console, f"The safeguarded model is in {out}" + (" (it was there already)" if finished else ""))
    sentences = effect_sentences(effect(recipe, out))
    for sentence in sentences:
        say(console, sentence)
    say_tracked(console, recipe.options.track, tracking_folder(out, model=True))
    if profile:
        say_profiled(console, profile_folder(out, model=True))
    end(
        context,
        console,
        documents.Safeguarded(
            model=str(out), made_before=finished, effect=list(sentences), card=Checkpoint(str(out)).card
        ),
        f"holdfast audit --model {quoted(out)} --undefended {quoted(recipe.original().path)} --domain {quoted(domain)} "
        f"--suite {suite_for(str(out))} --seeds 5 --out {quoted(out.parent / 'audit')}",
    )
