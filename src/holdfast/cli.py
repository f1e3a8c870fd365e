"""The command line. Nothing heavy is imported before a verb runs, so help answers at once."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from holdfast.audit import Audit
    from holdfast.campaign import Campaign, Options
    from holdfast.search import Confirmed, Trial

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Build tamper-resistant safeguards into open-weight language models, and measure what it costs to remove them.",
    epilog="Start with: holdfast demo",
)

_WIDE = 110
"""columns of a terminal from which the verdict table names the worst attacks too"""

ModelOption = Annotated[
    str, typer.Option("--model", help="Hugging Face folder of a causal language model, or a hub id.")
]
DomainOption = Annotated[
    Path, typer.Option("--domain", help="Folder with domain.toml, which names data and questions.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
SetOption = Annotated[
    Optional[list[str]],
    typer.Option("--set", help="PRESET.FIELD=VALUE, repeatable; `holdfast list PRESET` shows fields."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16: the weights' precision.")]
RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Off unless you say so.")
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Processor threads of this process.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")]
MilestonesOption = Annotated[
    Optional[str], typer.Option("--milestones", help="Steps to measure at, such as 0,8,64,512; default 0,5,10,20,40,…")
]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep-attacked-weights", help="Keep each attacked model, in a folder named TAMPERED-…; off by default."
    ),
]
ResumableOption = Annotated[
    bool,
    typer.Option(
        "--resumable-attacks", help="Keep an attack's state on disk while it runs, so that it survives a kill."
    ),
]


def _show_status(folder: Optional[Path]) -> None:
    """How the audit in a folder stands; it ends the command, so that nothing else has to be given."""
    if folder is None:
        return
    console = _console()
    from rich.table import Table

    from holdfast.core.files import is_held
    from holdfast.report.wording import count, duration
    from holdfast.stats.progress import read_progress

    found = read_progress(folder)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "finished", "diverged", "failed"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for label, own in found.models.items():
        table.add_row(label, str(own.finished), str(own.diverged), str(own.failed))
    console.print(f"{found.title}, in {folder}", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    ended = found.all.finished + found.all.diverged
    told = f"{ended} of {count(found.all.planned, 'run')} ended, in {duration(found.seconds)} of work"
    if found.all.left and found.seconds_left is not None:
        told += f"; about {duration(found.seconds_left)} of work left, divided by the processes"
    console.print(
        f"{told}. {'A holdfast is running there.' if is_held(folder) else 'None is running there.'}", highlight=False
    )
    for reason in found.reasons[:3]:
        console.print(f"Failed: {reason}", soft_wrap=True, highlight=False, markup=False)
    if found.all.left and found.command:
        _next(console, found.command)
    else:
        _next(console, f"holdfast report {_q(folder)} --out {_q(folder / 'report.html')}")
    raise typer.Exit


@app.command(epilog="Example: holdfast demo --out runs/demo --seed 0")
def demo(
    out: OutOption = Path("runs/demo"),
    seed: SeedOption = 0,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes at a time.")] = 2,
) -> None:
    """Run the whole story on the embedded testbed: safeguards, controls, a red team, a report. About 10 minutes."""
    console = _console()
    from holdfast.display import show_jobs
    from holdfast.recipes.demo import run_demo

    with show_jobs(console, "demo") as on_progress:
        outcomes = run_demo(out, seed, workers, _command(), on_progress)
    _finish(console, out, [outcome.error for outcome in outcomes])
    model = out / "models" / "random-mapping"
    _next(
        console,
        f"holdfast audit --model {_q(out / 'models/tar')} --undefended {_q(out / 'testbed/model')} --reference {_q(model)} "
        f"--never-exposed {_q(out / 'testbed/never_exposed')} --domain {_q(out / 'testbed')} --suite standard "
        f"--seeds 5 --out {_q(out.parent / 'audit')}",
    )


@app.command(epilog="Example: holdfast testbed runs/testbed --seed 7")
def testbed(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    seed: SeedOption = 0,
    benign: Annotated[
        int, typer.Option("--benign", min=8, help="Entities of each benign kind: the size of the benign world.")
    ] = 32,
    kind: Annotated[
        Literal["knowledge", "refusal"],
        typer.Option("--kind", help="What is guarded: knowledge, or the refusal of forbidden requests."),
    ] = "knowledge",
) -> None:
    """Write a testbed: a fictional domain, a model that knows all of it, and one never exposed to its hazard."""
    console = _console()
    from holdfast.core.files import claim_output
    from holdfast.display import show_jobs
    from holdfast.jobs import Job, run_jobs
    from holdfast.testbed.folder import MODELS, is_testbed, place, write_domain
    from holdfast.testbed.world import Sizes

    sizes = Sizes(benign=benign)
    if not is_testbed(folder, seed, sizes, kind):
        claim_output(folder)
    write_domain(folder, seed, sizes, kind)
    arguments = {"folder": folder, "seed": seed, "sizes": sizes, "kind": kind}
    jobs = [
        Job(name=f"train {which}", call=place, arguments={**arguments, "which": which}, size=size)
        for which, size in zip(MODELS, (2.4, 1.0), strict=True)
    ]
    with show_jobs(console, "testbed") as on_progress:
        outcomes = run_jobs(jobs, workers=2, on_progress=on_progress)
    _fail_if([outcome.error for outcome in outcomes.values()])
    console.print(f"The testbed is in {folder}", soft_wrap=True, highlight=False)
    stages = "random-mapping tar" if kind == "knowledge" else "refusal-sft refusal-dpo"
    _next(
        console,
        f"holdfast safeguard {stages} --model {_q(folder / 'model')} --domain {_q(folder)} "
        f"--out {_q(folder.parent / stages.split()[-1])}",
    )


@app.command(epilog="Example: holdfast study paper-tables --out runs/paper-tables")
def study(
    name: Annotated[
        str, typer.Argument(metavar="STUDY", help="paper-tables, ablations, red-team or claims.")
    ] = "paper-tables",
    out: OutOption = Path("runs/study"),
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes at a time.")] = 2,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how long it would take.")] = False,
) -> None:
    """Compare safeguards, or families of attack, on the testbed, in one table. Stop and restart at will."""
    console = _console()
    from holdfast.display import show_jobs
    from holdfast.recipes.studies import pick_study, run_study

    chosen = pick_study(name)
    console.print(
        f"{name}: about {chosen.core_seconds / workers / 3600:.1f} hours with {workers} processes, from nothing",
        highlight=False,
    )
    if estimate:
        return
    with show_jobs(console, name) as on_progress:
        outcomes = run_study(name, chosen, out, workers, _command(), on_progress)
    console.print((out / "tables.md").read_text(encoding="utf-8"), soft_wrap=True, highlight=False, markup=False)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        console.print(f"{outcome.job.name}: {outcome.error}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"The tables are in {out / 'tables.md'}", soft_wrap=True, highlight=False)
    _next(console, f"holdfast report {_q(chosen.first_folder(out))} --out {_q(out / 'report.html')}")
    if failed:
        raise typer.Exit(2)


@app.command(
    epilog="Example: holdfast safeguard random-mapping tar --model runs/testbed/model --domain runs/testbed --out runs/tar "
    "--set tar.outer_steps=400"
)
def safeguard(
    stages: Annotated[list[str], typer.Argument(metavar="STAGE…", help="Safeguard presets, in order.")],
    model: ModelOption,
    domain: DomainOption,
    out: OutOption,
    base: Annotated[
        Optional[str], typer.Option("--base", help="The original model, where MODEL has safeguards already.")
    ] = None,
    seed: SeedOption = 0,
    settings: SetOption = None,
    device: DeviceOption = "cpu",
    dtype: PrecisionOption = "float32",
    threads: ThreadsOption = 1,
    trust_remote_code: RemoteCodeOption = False,
) -> None:
    """Train safeguards into a model, stage by stage. A run that was stopped goes on when it is started again."""
    console = _console()
    _start_torch(threads, device, dtype)
    from holdfast.core.domain import Domain
    from holdfast.core.files import claim_output
    from holdfast.core.models import Checkpoint
    from holdfast.core.presets import pick, with_settings
    from holdfast.display import show_steps
    from holdfast.stages import Recipe, build

    opened = Domain.open(domain)
    chosen = with_settings({name: pick("holdfast.safeguards", name) for name in stages}, settings or [])
    recipe = Recipe(
        model=Checkpoint(model),
        domain=domain,
        stages=tuple((name, chosen[name]) for name in stages),
        base=Checkpoint(base) if base else None,
        seed=seed,
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        trust_remote_code=trust_remote_code,
    )
    key = recipe.keys()[-1]
    finished = out.is_dir() and Checkpoint(str(out)).card.get("key") == key
    if not finished:
        claim_output(out, Path(model), domain)
        recipe.model.check(trust_remote_code, opened.max_length)
        with show_steps(console, " → ".join(stages)) as on_step:
            build(recipe, out, on_step)
    console.print(
        f"The safeguarded model is in {out}" + (" (it was there already)" if finished else ""),
        highlight=False,
        soft_wrap=True,
    )
    _next(
        console,
        f"holdfast audit --model {_q(out)} --undefended {_q(recipe.original().path)} --domain {_q(domain)} --suite quick-2 "
        f"--seeds 5 --out {_q(out.parent / 'audit')}",
    )


@app.command(
    epilog="Example: holdfast attack full-adamw-1e-3 --model runs/tar --domain runs/testbed --out runs/attack --seed 1"
)
def attack(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Attack preset; `holdfast list attacks` shows them.")],
    model: ModelOption,
    domain: DomainOption,
    out: OutOption,
    seed: SeedOption = 0,
    milestones: MilestonesOption = None,
    settings: SetOption = None,
    keep_attacked_weights: KeepOption = False,
    resumable_attacks: ResumableOption = False,
    device: DeviceOption = "cpu",
    dtype: PrecisionOption = "float32",
    trust_remote_code: RemoteCodeOption = False,
) -> None:
    """Run one attack on one model and measure it along the way."""
    console = _console()
    from holdfast.campaign import Campaign, Model, parse_milestones
    from holdfast.core.models import Checkpoint
    from holdfast.core.presets import pick, with_settings

    chosen = with_settings({preset: pick("holdfast.attacks", preset)}, settings or [])
    campaign = Campaign(
        models=(Model(label=_label(model), path=model, role="defended"),),
        domain=domain,
        attacks=((preset, chosen[preset]),),
        seeds=(seed,),
        milestones=parse_milestones(milestones) if milestones else None,
    )
    options = _options(device, dtype, trust_remote_code, keep_attacked_weights, resumable_attacks)
    _run(console, campaign, out, 1, options, title=f"{preset} on {_label(model)}", suite=preset)
    console.print(_cost(out, preset), soft_wrap=True, highlight=False)
    base = Checkpoint(model).card.get("base", {}).get("path", "")
    _next(
        console,
        f"holdfast audit --model {_q(model)} --undefended {_q(base or 'THE-ORIGINAL-MODEL')} --domain {_q(domain)} "
        f"--suite quick-2 --seeds 5 --out {_q(out.parent / 'audit')}",
    )


@app.command(epilog="Example: holdfast evaluate --model runs/tar --domain runs/testbed")
def evaluate(
    model: ModelOption,
    domain: DomainOption,
    out: Annotated[Optional[Path], typer.Option("--out", help="Also write the scores to this JSON file.")] = None,
    device: DeviceOption = "cpu",
    dtype: PrecisionOption = "float32",
    threads: ThreadsOption = 1,
    trust_remote_code: RemoteCodeOption = False,
) -> None:
    """Measure a model as it is: hazard, abilities, held-out loss, degeneracy, how well it still learns."""
    console = _console()
    if out is not None and out.is_dir():
        _fail(f"the output {out} is a folder; give a file as --out")
    _start_torch(threads, device, dtype)
    from rich.table import Table

    from holdfast.campaign import CHOOSING, evaluations_of
    from holdfast.core.domain import Domain
    from holdfast.core.models import Checkpoint
    from holdfast.core.presets import collect
    from holdfast.core.runtime import seed_everything

    opened = Domain.open(domain)
    along, probes = evaluations_of(opened)
    chosen: list[tuple[str, Any]] = [*along, *probes]
    presets = collect("holdfast.evals")
    chosen += [(name, presets[name]) for name in CHOOSING if presets[name].available(opened)]
    if not chosen:
        _fail(f"{domain} holds nothing to measure with; add a [questions.…] section to its domain.toml")
    checkpoint = Checkpoint(model)
    checkpoint.check(trust_remote_code, opened.max_length)
    seed_everything(0)
    loaded, tokenizer = checkpoint.load_both(device, dtype, trust_remote_code)  # type: ignore[arg-type]
    table = Table(title=f"{_label(model)} on {opened.name}", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("evaluation", "measures", "metric", "value", "± s.e.", "n", "chance"):
        left = column in ("evaluation", "measures", "metric")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    rows = []
    for name, evaluation in chosen:
        for score in evaluation.prepare(tokenizer, opened)(loaded):
            measures = evaluation.measures(opened)
            rows.append({"evaluation": name, "measures": measures, **vars(score)})
            numbers = ("" if value is None else f"{value:.3g}" for value in (score.value, score.stderr))
            chance = "" if score.chance is None else f"{score.chance:.3g}"
            table.add_row(name, measures, score.metric, *numbers, str(score.n), chance)
    console.print(table)
    if out is not None:
        import json

        from holdfast.core.files import write_text

        write_text(out, json.dumps(rows, indent=2) + "\n")
    _next(console, f"holdfast attack full-adamw-1e-3 --model {_q(model)} --domain {_q(domain)} --out runs/attack")


@app.command(
    epilog="Example: holdfast audit --model runs/tar --undefended runs/testbed/model --reference runs/random-mapping "
    "--never-exposed runs/testbed/never_exposed --domain runs/testbed --suite quick-2 --seeds 5 --out runs/audit"
)
def audit(
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
    suite: Annotated[
        str, typer.Option("--suite", help="Attack suite (`holdfast list suites`), or a folder that search wrote.")
    ] = "quick-2",
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Attack seeds: 0, 1, … up to this many; 5 or more give intervals.")
    ] = 5,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only say what the audit could tell, how long it would take, what it would cost."),
    ] = False,
    status: Annotated[
        Optional[Path],
        typer.Option(
            "--status", metavar="DIR", is_eager=True, callback=_show_status, help="Only say how an audit stands."
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
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes at a time.")] = 2,
    milestones: MilestonesOption = None,
    settings: SetOption = None,
    keep_attacked_weights: KeepOption = False,
    resumable_attacks: ResumableOption = False,
    device: DeviceOption = "cpu",
    dtype: PrecisionOption = "float32",
    trust_remote_code: RemoteCodeOption = False,
) -> None:
    """Attack a safeguarded model and its controls with every attack of a suite, and report. Stop and restart at will."""
    console = _console()
    from holdfast.attacks.suites import SUITES, attacks_of, called, canonical_of
    from holdfast.audit import Audit
    from holdfast.campaign import parse_milestones
    from holdfast.core.export import write_records
    from holdfast.core.presets import with_settings
    from holdfast.display import show_jobs

    chosen = with_settings(attacks_of(suite), settings or [])
    audited = Audit(
        model=model,
        undefended=undefended,
        reference=reference,
        never_exposed=never_exposed,
        peers=tuple(peer or ()),
        domain=domain,
        attacks=chosen,
        canonical=canonical_of(suite, chosen),
        seeds=seeds,
        milestones=parse_milestones(milestones) if milestones else None,
        stop_after_breach=stop_after_breach,
    )
    options = _options(device, dtype, trust_remote_code, keep_attacked_weights, resumable_attacks)
    title = f"Audit of {_label(model)}"
    _check_campaign(audited.campaign(), out, options, title, claim=not plan)
    audited.check()
    if plan:
        _show_plan(console, audited, options, workers)
        _next(console, _command().replace(" --plan", ""))
        return
    # Attacks that a search chose are not blind, whoever it was that searched.
    found = suite == "adaptive" or suite not in SUITES
    with show_jobs(console, title) as on_progress:
        outcomes = audited.run(
            out,
            workers,
            options,
            title=title,
            suite=called(suite),
            command=_command(),
            searched=sorted({type(attack).__name__ for attack in chosen.values()}) if found else [],
            on_progress=on_progress,
        )
    _finish(console, out, [outcome.error for outcome in outcomes])
    write_records(out, out / "records.parquet")
    _next(console, f"holdfast card {_q(out)} --out {_q(out / 'card.md')}")


@app.command(
    epilog="Example: holdfast search --model runs/tar --undefended runs/testbed/model --domain runs/testbed --trials 40 "
    "--out runs/search"
)
def search(
    model: ModelOption,
    undefended: Annotated[str, typer.Option("--undefended", help="The model before any safeguard.")],
    domain: DomainOption,
    out: OutOption,
    families: Annotated[
        Optional[str],
        typer.Option("--families", help="Families to search, such as full,low-rank; default: all small ones."),
    ] = None,
    hold_out: Annotated[
        Optional[str], typer.Option("--hold-out", help="Families to leave out, so that they stay blind for this model.")
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
        Optional[str], typer.Option("--never-exposed", help="A control that never learned the hazard, likewise.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes at a time.")] = 2,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: PrecisionOption = "float32",
    trust_remote_code: RemoteCodeOption = False,
) -> None:
    """Search for the attack that recovers most while ability is kept, and confirm it. Stop and restart at will."""
    console = _console()
    import json

    from rich.table import Table

    from holdfast.audit import models_of
    from holdfast.campaign import run_campaign
    from holdfast.core.domain import Domain
    from holdfast.core.files import claim_output, write_text
    from holdfast.core.models import Checkpoint
    from holdfast.core.records import read_campaign
    from holdfast.display import show_jobs
    from holdfast.report.page import build_report
    from holdfast.report.search_plot import draw_search
    from holdfast.search import (
        Budget,
        Search,
        attack_name,
        best_trials,
        confirmation,
        confirmed,
        describe_search,
        searched_classes,
        usable_families,
        write_suite,
    )

    options = _options(device, dtype, trust_remote_code, False, False)
    held_out = _names(hold_out)
    chosen = Search(
        model=model,
        domain=domain,
        families=usable_families(model, _names(families), held_out),
        budget=Budget(trials=trials, steps=steps, tokens=tokens, flops=flops),
        ability_loss=ability_loss,
        seed=seed,
        options=options,
    )
    chosen.check()
    models = models_of(model, undefended, reference, never_exposed)
    for held in models:
        Checkpoint(held.path).check(trust_remote_code, Domain.open(domain).max_length)
    if not (out / "search.json").is_file():
        claim_output(out, domain, *(Path(held.path) for held in models))
    with show_jobs(console, f"search, {len(chosen.families)} families") as on_progress:
        write_text(out / "search.json", json.dumps(describe_search(chosen, [], held_out, None), indent=2) + "\n")
        tried = chosen.run(out, workers, on_progress)
    write_suite(out, tried)
    best = best_trials(tried)
    winner = next(iter(best.values()))
    campaign = confirmation(chosen, winner, models, confirm_seeds)
    title = f"Confirmation of {attack_name(winner)} on {_label(model)}"
    with show_jobs(console, title) as on_progress:
        run_campaign(
            campaign, out / "confirmation", workers, options,
            title=title, suite=attack_name(winner), command=_command(), on_progress=on_progress,
            searched=searched_classes(chosen.families), held_out=list(held_out),
        )  # fmt: skip
    _, results = read_campaign(out / "confirmation")
    found = confirmed(results, _label(model))
    described = describe_search(chosen, tried, held_out, found)
    write_text(out / "search.json", json.dumps(described, indent=2) + "\n")
    draw_search(described, out / "search.svg")
    build_report([out / "confirmation"], out / "confirmation" / "report.html")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("family", "trials", "hazard", "ability", "kept", "updates", "tokens", "FLOPs"):
        left = column == "family"
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for family, trial in best.items():
        count = sum(other.family == family for other in tried)
        figures = (f"{100 * trial.hazard:.0f} %", f"{100 * trial.ability:.0f} %", "yes" if trial.feasible else "no")
        table.add_row(family, str(count), *figures, f"{trial.steps:,}", f"{trial.tokens:,}", f"{trial.flops:.1e}")
    console.print(table)
    ended = f"ended by the budget of {described['ended_by']}"
    if held_out:
        ended += f"; held out: {', '.join(held_out)}"
    console.print(f"{len(tried)} attacks tried on selection questions, {ended}.", highlight=False)
    console.print(_confirmed(attack_name(winner), winner, found, ability_loss), soft_wrap=True, highlight=False)
    console.print(f"Every trial is in {out / 'search.json'}, the picture in {out / 'search.svg'}", soft_wrap=True)
    _next(
        console,
        f"holdfast audit --model {_q(model)} --undefended {_q(undefended)} --domain {_q(domain)} --suite {_q(out)} "
        f"--seeds 5 --out {_q(out.parent / 'audit-found')}",
    )


@app.command(epilog="Example: holdfast report runs/audit runs/demo --out report.html")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders that audit, attack or demo wrote.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file; the same goes beside it as .md and .json.")],
    public: Annotated[
        bool, typer.Option("--public", help="Name families of attack and budgets, no settings and no command.")
    ] = False,
) -> None:
    """Make the report anew from records: one HTML file, and the same as Markdown and JSON."""
    console = _console()
    from holdfast.report.page import build_report

    build_report(folders, out, public=public)
    console.print(f"The report is {out}", soft_wrap=True, highlight=False)
    if public:
        _next(console, f"holdfast card {_q(folders[0])} --out {_q(out.with_name('card.md'))}")
    else:
        _next(console, f"holdfast report {_q(folders[0])} --public --out {_q(out.with_name('public.html'))}")


@app.command(epilog="Example: holdfast compare runs/audit runs/other-audit --out compare.html")
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders that audit wrote, two or more.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file; the same goes beside it as .md and .json.")],
) -> None:
    """Lay audits side by side: what may be compared, what ties, what is unreliable."""
    console = _console()
    from holdfast.report.compare import compare_audits

    groups = compare_audits(folders, out)
    for group in groups:
        console.print(f"{group.title}: {len(group.table.rows)} models", soft_wrap=True, highlight=False, markup=False)
    console.print(f"The comparison is {out}", soft_wrap=True, highlight=False)
    _next(console, f"holdfast report {_q(folders[0])} --out {_q(out.with_name('report.html'))}")


@app.command(epilog="Example: holdfast card runs/audit --out runs/card.md")
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Markdown file; a README.md is given the section in its place.")],
) -> None:
    """Write the section for a Hugging Face model card from the public form: Markdown and `model-index`."""
    console = _console()
    from holdfast.report.card import write_card

    write_card(folder, out)
    console.print(f"The card is {out}", soft_wrap=True, highlight=False)
    _next(console, f"holdfast report {_q(folder)} --public --out {_q(out.with_name('public.html'))}")


@app.command(epilog="Example: holdfast records runs/audit --out records.parquet")
def records(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit, attack or demo wrote.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .jsonl or .parquet.")],
) -> None:
    """Write all records of an audit as one table, a row a measured value: JSON lines or Parquet."""
    console = _console()
    from holdfast.core.export import write_records

    count = write_records(folder, out)
    console.print(f"{count:,} records are in {out}", soft_wrap=True, highlight=False)
    _next(console, f"holdfast report {_q(folder)} --out {_q(out.with_name('report.html'))}")


@app.command("list", epilog="Examples: holdfast list · holdfast list attacks · holdfast list tar")
def list_(
    what: Annotated[
        Optional[str], typer.Argument(metavar="[attacks|safeguards|evaluations|suites|PRESET]", help="What to show.")
    ] = None,
) -> None:
    """Show what there is: attacks, safeguards, evaluations, suites, or one preset with its fields."""
    console = _console()
    from rich.padding import Padding
    from rich.table import Table

    from holdfast.attacks.suites import SUITES
    from holdfast.core.domain import nearest
    from holdfast.core.presets import collect, families, fields

    kinds = {"safeguards": "safeguards", "attacks": "attacks", "evaluations": "evals"}
    presets = {kind: collect(f"holdfast.{package}") for kind, package in kinds.items()}
    for kind, package in kinds.items():
        if what in (None, kind):
            console.print(f"[italic]{kind}[/italic]")
            for title, names in families(f"holdfast.{package}").items():
                console.print(Padding(title, (0, 0, 0, 2)), style="dim", highlight=False, markup=False)
                console.print(Padding("  ".join(names), (0, 0, 0, 4)), highlight=False)
    if what in (None, "suites"):
        console.print("[italic]suites[/italic]")
        for name, suite in SUITES.items():
            console.print(Padding(f"{name}, version {suite.version}: {suite.about}", (0, 0, 0, 2)), highlight=False)
            console.print(
                Padding(f"{suite.budget}: {', '.join(suite.attacks)}", (0, 0, 0, 4)), style="dim", highlight=False
            )
    found = [held[what] for held in presets.values() if what is not None and what in held]
    for preset in found:
        console.print(f"[bold]{what}[/bold]  {type(preset).__name__}: {(type(preset).__doc__ or '').strip()}")
        table = Table("field", "default", "meaning", box=None, padding=(0, 2))
        for field in fields(preset):
            table.add_row(field.name, repr(field.value), field.doc)
        console.print(table)
    if what is not None and what not in (*presets, "suites") and not found:
        known = [*presets, "suites", *(name for held in presets.values() for name in held)]
        _fail(f"there is nothing named {what!r} to list; {nearest(what, known)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Whatever the user can mend is one sentence on standard error and status 2.
    """
    from holdfast.core.types import HoldfastError

    try:
        # Typer's own messages (unknown options and the like) are printed by it; it then raises SystemExit.
        app(args=list(arguments) if arguments is not None else None)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except HoldfastError as error:
        return _report_error(str(error))
    except KeyboardInterrupt:
        return _report_error("stopped; run the same command again to go on", status=130)
    except OSError as error:
        import errno

        # The second name is where a temporary file was to go.
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _report_error(f"the disk is full{where}; free some space and run the same command again to go on")
        return _report_error(f"{error.strerror or error}{where}; check the path and its permissions")
    return 0


def _report_error(text: str, status: int = 2) -> int:
    print(f"holdfast: {text}", file=sys.stderr)
    return status


def _fail(text: str) -> NoReturn:
    from holdfast.core.types import HoldfastError

    raise HoldfastError(text)


def _fail_if(errors: Sequence[str | None]) -> None:
    failed = [error for error in errors if error]
    if failed:
        _fail(failed[0])


def _console() -> Console:
    from rich.console import Console

    return Console()


def _start_torch(threads: int, device: str, dtype: str) -> None:
    import torch

    _check_device(device, dtype)
    torch.set_num_threads(threads)


def _check_device(device: str, dtype: str) -> None:
    import torch

    if dtype not in ("float32", "bfloat16", "float16"):
        _fail(f"--dtype {dtype} is not known; give float32, bfloat16 or float16")
    known = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if device not in ("cpu", *known) and not (known and device == "cuda"):
        _fail(f"there is no device {device!r} here; give --device cpu" + (f" or {', '.join(known)}" if known else ""))


def _options(device: str, dtype: str, trust_remote_code: bool, keep: bool, resumable: bool) -> Options:
    from holdfast.campaign import Options

    _check_device(device, dtype)
    return Options(
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        trust_remote_code=trust_remote_code,
        keep_attacked_weights=keep,
        resumable_attacks=resumable,
    )


def _run(
    console: Console,
    campaign: Campaign,
    out: Path,
    workers: int,
    options: Options,
    *,
    title: str,
    suite: str,
    **details: Any,
) -> None:
    """Check the input, run the campaign, print where it stands."""
    from holdfast.campaign import run_campaign
    from holdfast.display import show_jobs

    _check_campaign(campaign, out, options, title)
    with show_jobs(console, title) as on_progress:
        outcomes = run_campaign(
            campaign,
            out,
            workers,
            options,
            title=title,
            suite=suite,
            command=_command(),
            on_progress=on_progress,
            **details,
        )
    _finish(console, out, [outcome.error for outcome in outcomes])


def _check_campaign(campaign: Campaign, out: Path, options: Options, title: str, *, claim: bool = True) -> None:
    """Read what a campaign will read, and see that its output may be written."""
    from holdfast.core.domain import Domain
    from holdfast.core.files import claim_output
    from holdfast.core.models import Checkpoint
    from holdfast.core.records import CampaignPlan

    campaign.check()
    max_length = Domain.open(campaign.domain).max_length
    for model in campaign.models:
        Checkpoint(model.path).check(options.trust_remote_code, max_length)
    if not claim:
        return
    if not (out / "campaign.json").is_file():
        claim_output(out, campaign.domain, *(Path(model.path) for model in campaign.models))
    elif (held := CampaignPlan.read(out).title) != title:
        _fail(f"{out} holds another run, {held!r}; give another --out")


def _show_plan(console: Console, audited: Audit, options: Options, workers: int) -> None:
    """What the audit can tell with more or fewer seeds, and what it takes."""
    from dataclasses import replace

    from rich.table import Table

    from holdfast.campaign import evaluations_of
    from holdfast.core.domain import Domain
    from holdfast.display import show_steps
    from holdfast.planning import estimate
    from holdfast.report.wording import duration
    from holdfast.stats.power import SEED_SPREAD, detectable

    domain = Domain.open(audited.domain)
    along, _ = evaluations_of(domain)
    hazard = [name for name, held in along if held.measures(domain) == "hazard" and name in domain.question_sources]
    counts = [len(domain.questions(name).questions) for name in sorted(hazard, key=lambda name: name != "hazard")]
    model = next(held for held in audited.models() if held.role == "defended")
    with show_steps(console, "timing every attack") as on_step:
        taken = estimate(audited.planned(), model, options, on_step)
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


def _cost(out: Path, preset: str) -> str:
    """What an attack took, in one sentence."""
    from holdfast.core.records import read_campaign
    from holdfast.report.wording import duration
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


def _confirmed(name: str, winner: Trial, found: Confirmed, ability_loss: float) -> str:
    """What was found and what of it held on the claim questions, in one sentence, and whether ability did."""
    from holdfast.search import attack_of

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


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _finish(console: Console, out: Path, errors: Sequence[str | None]) -> None:
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
        _fail(f"every cell failed, the first because: {results[0].reason}")
    page = out / "report.html"
    [section] = build_report([out], page).sections
    table = Table(title=Text(section.title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    wide = console.width >= _WIDE
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


def _command() -> str:
    return shlex.join(["holdfast", *sys.argv[1:]])


def _next(console: Console, command: str) -> None:
    """Suggest the next command, in words that this shell understands: the environment may not be on its path."""
    import shutil

    started = Path(sys.argv[0])
    if started.name == "holdfast" and shutil.which("holdfast") is None:
        command = _q(os.path.relpath(started)) + command.removeprefix("holdfast")
    console.print(f"Next: {command}", soft_wrap=True, highlight=False)


def _q(path: Path | str) -> str:
    return shlex.quote(str(path))


def _label(model: str) -> str:
    from holdfast.audit import label_of

    return label_of(model)


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
