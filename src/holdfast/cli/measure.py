"""Verbs that measure: attack, evaluate, audit, search, study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from holdfast.campaign.cells import Campaign
    from holdfast.core.options import Options
from holdfast.cli.options import (
    DeviceOption,
    DomainOption,
    KeepOption,
    MilestonesOption,
    ModelOption,
    OutOption,
    PrecisionOption,
    RemoteCodeOption,
    ResumableOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    _fail,
    _label,
    _names,
    _options,
    _start_torch,
)
from holdfast.cli.say import _command, _confirmed, _console, _cost, _finish, _next, _q, _show_plan, _show_status


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
    from holdfast.cli.display import show_jobs
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
    from holdfast.campaign.cells import Campaign, Model, parse_milestones
    from holdfast.core.presets import pick, with_settings
    from holdfast.engine.checkpoint import Checkpoint

    [(label, chosen)] = with_settings({preset: pick("holdfast.attacks", preset)}, settings or []).items()
    campaign = Campaign(
        models=(Model(label=_label(model), path=model, role="defended"),),
        domain=domain,
        attacks=((label, chosen),),
        seeds=(seed,),
        milestones=parse_milestones(milestones) if milestones else None,
    )
    options = _options(device, dtype, trust_remote_code, keep_attacked_weights, resumable_attacks)
    _run(console, campaign, out, 1, options, title=f"{label} on {_label(model)}", suite=label)
    console.print(_cost(out, label), soft_wrap=True, highlight=False)
    base = Checkpoint(model).card.get("base", {}).get("path", "")
    _next(
        console,
        f"holdfast audit --model {_q(model)} --undefended {_q(base or 'THE-ORIGINAL-MODEL')} --domain {_q(domain)} "
        f"--suite quick-2 --seeds 5 --out {_q(out.parent / 'audit')}",
    )


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

    from holdfast.campaign.cells import CHOOSING, evaluations_of
    from holdfast.core.domain import Domain
    from holdfast.core.presets import collect
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.engine.run import seed_everything

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
    from holdfast.campaign.cells import parse_milestones
    from holdfast.cli.display import show_jobs
    from holdfast.core.export import write_records
    from holdfast.core.presets import with_settings
    from holdfast.runs.audit import Audit
    from holdfast.runs.suites import SUITES, attacks_of, called, canonical_of

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
            suite=called(suite, chosen),
            command=_command(),
            searched=sorted({type(attack).__name__ for attack in chosen.values()}) if found else [],
            on_progress=on_progress,
        )
    _finish(console, out, [outcome.error for outcome in outcomes])
    write_records(out, out / "records.parquet")
    _next(console, f"holdfast card {_q(out)} --out {_q(out / 'card.md')}")


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

    from holdfast.campaign.run import run_campaign
    from holdfast.cli.display import show_jobs
    from holdfast.core.domain import Domain
    from holdfast.core.files import claim_output, write_text
    from holdfast.core.records import read_campaign
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.report.page import build_report
    from holdfast.report.search_plot import draw_search
    from holdfast.runs.audit import models_of
    from holdfast.runs.search.confirmation import confirmation, confirmed, describe_search, searched_classes
    from holdfast.runs.search.search import Budget, Search, usable_families, write_suite
    from holdfast.runs.search.trial import attack_name, best_trials

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
    from holdfast.campaign.run import run_campaign
    from holdfast.cli.display import show_jobs

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
    from holdfast.core.records import CampaignPlan
    from holdfast.engine.checkpoint import Checkpoint

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
