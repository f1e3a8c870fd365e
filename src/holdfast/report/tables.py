"""The report's tables as rows of text, one form for HTML, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.core.records import CampaignPlan, CellResult
from holdfast.report.wording import (
    NOTHING,
    OUTCOMES,
    amount,
    breach_steps,
    change,
    duration,
    interval,
    resisted,
    spread,
)
from holdfast.stats.cells import NO_ATTACK, CellSummary, Measured, Scale, describe
from holdfast.stats.masking import Checked, checked, small_percent
from holdfast.stats.seeds import Estimate
from holdfast.stats.summary import (
    ANCHOR_ROLES,
    CampaignSummary,
    Learning,
    ModelSummary,
    Over,
    Pair,
    summarise,
)
from holdfast.stats.suspicion import mean_costs


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Where a model's figures lie between 0 and 100 percent."""

    before: float | None
    low: float
    mean: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One table cell: a figure, what must be read beside it (a note may have lines), and how strongly to shade it."""

    text: str
    note: str = ""
    tag: str = ""
    shade: float | None = None
    """0 to 1: hazard, for the background"""
    strip: Strip | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A captioned table; the first column of every row is its heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One model's line of the verdict table, written out; `summary` holds the figures behind it."""

    model: str
    role: str
    verdict: str
    """empty for the ends of the scale, about which nothing is decided"""
    before: str
    mean: str
    """mean hazard after attack, over all attacks"""
    mean_kept: str
    """the same over the attacks that keep ability"""
    worst: str
    worst_attack: str
    ability: str
    """before → after that worst attack"""
    resisted: str
    summary: ModelSummary


def verdict_table(plan: CampaignPlan, results: Sequence[CellResult]) -> list[VerdictRow]:
    """One row a model: undefended, reference, defended, never-exposed."""
    return verdict_rows(summarise(plan, results))


def verdict_rows(summary: CampaignSummary) -> list[VerdictRow]:
    """As `verdict_table`, from a summary that exists already."""
    return [_verdict_row(model, summary) for model in summary.models]


def _verdict_row(model: ModelSummary, summary: CampaignSummary) -> VerdictRow:
    worst = model.all.worst
    return VerdictRow(
        model=model.label,
        role=model.role,
        verdict="" if model.role in ANCHOR_ROLES else model.verdict,
        before=amount(model.before.value if model.before else None, summary.hazard),
        mean=amount(model.all.mean, summary.hazard),
        mean_kept=amount(model.kept.mean, summary.hazard),
        worst=amount(worst.after.mean if worst and worst.after else None, summary.hazard),
        worst_attack=worst.attack if worst else NOTHING,
        ability=change(worst.ability_before, worst.ability_after, summary.ability) if worst else NOTHING,
        resisted=resisted(model),
        summary=model,
    )


def verdict(summary: CampaignSummary) -> Table:
    """The page's first table: hazard and the ability left beside it, per model."""
    strips = summary.hazard.metric != "nats"
    rows = []
    for row in verdict_rows(summary):
        model = row.summary
        worst = model.all.worst
        kept = f"{model.kept.attacks} of {model.all.attacks}" if model.all.attacks else ""
        rows.append(
            (
                Entry(text=row.model, note=row.role, tag=row.verdict),
                Entry(text=row.before),
                Entry(
                    text=row.mean,
                    note=f"median {amount(model.all.median, summary.hazard)}" if model.all.attacks else "",
                ),
                Entry(text=row.mean_kept, note=kept),
                Entry(text=row.worst, note=_over_seeds(worst.after if worst else None, summary.hazard)),
                Entry(text=row.worst_attack),
                Entry(text=row.ability),
                Entry(text=row.resisted),
                *([Entry(text="", strip=_strip(model))] if strips else []),
            )
        )
    columns = ("Model", "Hazard before", "Mean after", "Mean, ability kept", "Worst after", "Worst attack")
    last = ("Ability at worst", "Resisted", *(("0\N{EN DASH}100 %",) if strips else ()))
    return Table(
        caption="Hazard knowledge before and after attack, with the ability left at the worst attack",
        columns=(*columns, *last),
        rows=tuple(rows),
        notes=tuple(_levels(summary)),
    )


def _levels(summary: CampaignSummary) -> list[str]:
    marks = []
    if summary.hazard.chance is not None:
        marks.append(f"Chance is {amount(summary.hazard.chance, summary.hazard)}.")
    if summary.floor is not None:
        marks.append(f"The never-exposed model is at {amount(summary.floor, summary.hazard)} after attack, on average.")
    return marks


def _strip(model: ModelSummary) -> Strip | None:
    worst = model.all.worst
    if model.all.mean is None or worst is None or worst.after is None:
        return None
    before = model.before.value if model.before else None
    return Strip(before=before, low=0.0, mean=model.all.mean, high=worst.after.mean)


def _over_seeds(estimate: Estimate | None, scale: Scale) -> str:
    if estimate is None:
        return ""
    return "one seed" if estimate.seeds == 1 else f"{estimate.seeds} seeds: {spread(estimate, scale)}"


def intervals(summary: CampaignSummary) -> Table:
    """What the means stand on: attacks, seeds, standard errors and intervals."""

    def row(model: ModelSummary, name: str, over: Over) -> tuple[Entry, ...]:
        error = amount(over.stderr, summary.hazard, decimals=1)
        worst = over.worst
        return (
            Entry(text=model.label, note=name),
            Entry(text=str(over.attacks)),
            Entry(text=amount(over.mean, summary.hazard, decimals=1), note=f"± {error}" if over.attacks else ""),
            Entry(text=amount(over.median, summary.hazard, decimals=1)),
            Entry(text=interval(over.interval, summary.hazard) if over.attacks else NOTHING),
            Entry(
                text=amount(worst.after.mean if worst and worst.after else None, summary.hazard, decimals=1),
                note=f"ability {amount(worst.ability_after, summary.ability)}" if worst else "",
            ),
            Entry(text=worst.attack if worst else NOTHING),
        )

    return Table(
        caption="Mean, median and worst hazard after attack, over all attacks and over those that keep ability",
        columns=("Model", "Attacks", "Mean", "Median", "95 % interval", "Worst", "Worst attack"),
        rows=tuple(
            row(model, name, over)
            for model in summary.models
            if model.all.attacks
            for name, over in (("all attacks", model.all), ("ability kept", model.kept))
        ),
        notes=(
            "± is one standard error, questions and seeds combined; a difference within two of them is no difference.",
        ),
    )


def attack_by_model(summary: CampaignSummary) -> Table:
    """Every attack on every model: hazard after, the ability left, and how it ended."""
    rows = []
    for attack in summary.attacks:
        heading = Entry(
            text=attack.name,
            note=f"{attack.budget:,} steps" if attack.budget else "",
            tag="weak" if attack.strength == "weak" else "",
        )
        pairs = [summary.pair(model.label, attack.name) for model in summary.models]
        entries = [_pair_entry(pair, model.role, summary) for pair, model in zip(pairs, summary.models, strict=True)]
        rows.append((heading, *entries))
    return Table(
        caption="Hazard after each attack on each model, with the ability left beside it",
        columns=("Attack", *(model.label for model in summary.models)),
        rows=tuple(rows),
    )


def _pair_entry(pair: Pair | None, role: str, summary: CampaignSummary) -> Entry:
    if pair is None:
        return Entry(text=NOTHING, note="not run")
    tag = "" if role in ANCHOR_ROLES else OUTCOMES[pair.outcome]
    void = pair.diverged + pair.failed
    notes = [
        f"ability {change(pair.ability_before, pair.ability_after, summary.ability)}" if pair.after else "",
        _over_seeds(pair.after, summary.hazard) if pair.finished > 1 else "",
        f"{void} of {void + pair.finished} void" if void else "",
        "seen in training" if pair.seen_in_training else "",
    ]
    value = pair.after.mean if pair.after else None
    return Entry(
        text=amount(value, summary.hazard),
        note="\n".join(note for note in notes if note),
        tag=tag,
        shade=value if summary.hazard.metric != "nats" else None,
    )


def steps_to_breach(summary: CampaignSummary) -> Table:
    """When half of the hazard was back, by attack and model; milestones give intervals, the budget a lower bound."""
    models = [model for model in summary.models if model.role not in ANCHOR_ROLES]
    rows = []
    for attack in summary.attacks:
        pairs = [summary.pair(model.label, attack.name) for model in models]
        rows.append((Entry(text=attack.name), *(_steps_entry(pair, summary) for pair in pairs)))
    return Table(
        caption="Attack steps until half of the hazard was back, earliest seed",
        columns=("Attack", *(model.label for model in models)),
        rows=tuple(rows),
        notes=("Values are seen at milestones only: an interval of steps, or a lower bound where it never happened.",),
    )


def _steps_entry(pair: Pair | None, summary: CampaignSummary) -> Entry:
    if pair is None or pair.threshold is None:
        return Entry(text=NOTHING)
    if pair.breach is None and not pair.finished:
        return Entry(text=NOTHING, note="no result")
    attack = summary.attack(pair.attack)
    return Entry(
        text=breach_steps(pair.breach, attack.budget if attack else 0),
        note=f"at {amount(pair.threshold, summary.hazard)}, recovery {_share(pair.recovery)}",
    )


def curve(summary: CampaignSummary, attack: str) -> Table:
    """The numbers behind one relearning picture."""
    cells = [cell for cell in summary.cells if cell.attack == attack and cell.curve]
    steps = sorted({point.step for cell in cells for point in cell.curve})
    rows = []
    for cell in cells:
        held = {point.step: point for point in cell.curve}
        entries = [_point_entry(held.get(step), summary.hazard) for step in steps]
        rows.append((Entry(text=cell.model, note=f"seed {cell.seed}", tag=_void(cell)), *entries))
    return Table(
        caption=f"Hazard along {attack}, by attack step",
        columns=("Model", *(f"{step:,}" for step in steps)),
        rows=tuple(rows),
        notes=("* taken on a sample of the questions.",) if any(not p.complete for c in cells for p in c.curve) else (),
    )


def _point_entry(point: Any, scale: Scale) -> Entry:
    if point is None:
        return Entry(text=NOTHING)
    return Entry(text=amount(point.value, scale) + ("" if point.complete else "*"))


def _void(cell: CellSummary) -> str:
    return "" if cell.status == "finished" else cell.status


def overview(summary: CampaignSummary) -> Table:
    """The numbers behind the overview picture."""
    return Table(
        caption="Ability and hazard after each attack",
        columns=("Model", "Attack", "Ability after", "Hazard after", "Attacker's best on the way"),
        rows=tuple(
            (
                Entry(text=pair.model),
                Entry(text=pair.attack),
                Entry(text=amount(pair.ability_after, summary.ability, decimals=1)),
                Entry(text=amount(pair.after.mean if pair.after else None, summary.hazard, decimals=1)),
                Entry(text=amount(pair.best.mean if pair.best else None, summary.hazard, decimals=1)),
            )
            for pair in summary.pairs
        ),
    )


def costs(plan: CampaignPlan, summary: CampaignSummary) -> Table:
    """What the safeguard costs those who mean no harm, before any attack."""
    names = list(dict.fromkeys((m.evaluation, m.metric) for model in summary.models for m in model.untouched))
    seconds = {model.label: _seconds(plan, model.label) for model in summary.models}
    base = next((seconds[m.label] for m in summary.models if m.role == "undefended" and seconds[m.label]), None)
    rows = []
    for model in summary.models:
        held = {(m.evaluation, m.metric): m for m in model.untouched}
        scores = [_measured_entry(held.get(name)) for name in names]
        rows.append(
            (
                Entry(text=model.label, note=model.role),
                *scores,
                _learning_entry(model.learning),
                _seconds_entry(seconds[model.label], base),
            )
        )
    return Table(
        caption="What each model can do before any attack, and what it cost to build",
        columns=("Model", *(name for name, _ in names), "Benign learning", "Built in"),
        rows=tuple(rows),
        notes=(
            "Benign learning: steps until new harmless facts are known to 90 %, and the ratio to the undefended model. "
            "A share of the undefended model's own building time stands beside the seconds where both are known.",
        ),
    )


def _measured_entry(measured: Measured | None) -> Entry:
    if measured is None:
        return Entry(text=NOTHING)
    scale = Scale(evaluations=(measured.evaluation,), metric=measured.metric, chance=measured.chance)
    error = amount(measured.stderr, scale, decimals=1) if measured.stderr else ""
    return Entry(text=amount(measured.value, scale, decimals=1), note=f"± {error}" if error else "")


def _learning_entry(learning: Learning | None) -> Entry:
    if learning is None:
        return Entry(text=NOTHING)
    bound = "" if learning.reached else "≥ "
    ratio = f"{bound}{learning.ratio:.1f} times undefended" if learning.ratio is not None else ""
    return Entry(text=f"{bound}{learning.steps:,.0f} steps", note=ratio)


def _seconds(plan: CampaignPlan, label: str) -> float | None:
    seconds = model_details(plan, label).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None  # 0: it was not built here


def _seconds_entry(seconds: float | None, base: float | None) -> Entry:
    if seconds is None:
        return Entry(text=NOTHING)
    return Entry(text=duration(seconds), note=f"{100 * seconds / base:.0f} % of undefended" if base else "")


def model_details(plan: CampaignPlan, label: str) -> Mapping[str, Any]:
    """What the plan tells of one model: `details["models"][label]`, or `details[label]`; empty without."""
    models = plan.details.get("models")
    own = models.get(label) if isinstance(models, dict) else plan.details.get(label)
    return own if isinstance(own, dict) else {}


def masking(plan: CampaignPlan, results: Sequence[CellResult]) -> Table:
    """Whether gradients are true and lead downhill, and whether more can be read than is said; no rows where none was checked."""
    return Table(
        caption="Checks for masked gradients and hidden knowledge, before any attack",
        columns=(
            "Model",
            "Gradient error",
            "Gradient norm",
            "Fall along the gradient",
            "Along random directions",
            "Foretold fall that comes true",
            "Read by a linear probe",
            "Answered by the model",
        ),
        rows=tuple(_checked_row(model) for model in checked(plan, results)),
        notes=(
            "Gradient error: how far gradients of the held-out hazardous loss are from finite differences. Gradient norm: times "
            "the weights' norm, in nats. Falls are the largest over steps of 0.1 to 3 % of the weights' norm; the foretold one "
            "is that of the shortest step. The probe is trained on other questions than those that it is asked.",
        ),
    )


def _checked_row(model: Checked) -> tuple[Entry, ...]:
    error, norm, ratio = model.gradient_error, model.gradient_norm, model.descent_ratio
    return (
        Entry(text=model.model, note=model.role),
        Entry(text=NOTHING if error is None else small_percent(error)),
        Entry(text=NOTHING if norm is None else f"{norm:.3g}"),
        Entry(text=_nats(model.descent_gain)),
        Entry(text=_nats(model.random_gain)),
        Entry(text=NOTHING if ratio is None else f"{round(100 * ratio)} %".replace("-", "\N{MINUS SIGN}")),
        Entry(
            text=_percent(model.probe.value if model.probe else None),
            note=f"± {100 * model.probe.stderr:.1f} %, layer {model.probe_layer}" if model.probe else "",
        ),
        Entry(text=_percent(model.answered.value if model.answered else None)),
    )


def _nats(value: float | None) -> str:
    return NOTHING if value is None else f"{round(value, 2) + 0.0:.2f} nats".replace("-", "\N{MINUS SIGN}")


def cells(summary: CampaignSummary) -> Table:
    """Every run, finished or not, with its flags."""
    hazard, ability = summary.hazard, summary.ability
    rows = []
    for cell in summary.cells:
        if cell.attack == NO_ATTACK:
            continue
        best = cell.best
        rows.append(
            (
                Entry(text=cell.model, note=cell.attack),
                Entry(text=str(cell.seed)),
                Entry(text=str(cell.curve[-1].step) if cell.curve else NOTHING, tag=_void(cell)),
                Entry(text=amount(cell.last.value if cell.last else None, hazard, decimals=1)),
                Entry(
                    text=amount(best.value if best else None, hazard, decimals=1),
                    note=f"step {best.step:,}" if best else "",
                ),
                Entry(text=change(cell.ability_before, cell.ability_after, ability)),
                Entry(text=_percent(cell.repetition)),
                Entry(text=_loss_change(cell)),
                Entry(text=duration(cell.seconds)),
                Entry(text="; ".join(cell.flags)),
                Entry(text=cell.cell),
            )
        )
    columns = ("Model and attack", "Seed", "Steps", "Hazard, last", "Attacker's best", "Ability", "Repetition")
    return Table(
        caption="Every run that ended, with what must be known before believing it",
        columns=(*columns, "Attacker's loss", "Time", "Flags", "Identity"),
        rows=tuple(rows),
    )


def over_refusal(results: Sequence[CellResult], label: str) -> str | None:
    """Benign requests that an untouched model refuses; None where none were put."""
    for result in results:
        for record in result.records:
            if result.model == label and record.step == 0 and record.evaluation == "over_refusal":
                error = f" ± {100 * record.stderr:.1f}" if record.stderr else ""
                return f"{100 * record.value:.1f}{error} % of benign requests are refused before any attack"
    return None


def refusals(summary: CampaignSummary, results: Sequence[CellResult]) -> Table:
    """What models do with requests and how they write, before and after their worst attack: refusal apart from incapacity."""
    kinds = ("refusal", "degeneracy")
    names = list(
        dict.fromkeys(
            (record.evaluation, record.metric)
            for result in results
            for record in result.records
            if record.measures in kinds
        )
    )
    rows = []
    for model in summary.models:
        worst = model.all.worst.attack if model.all.worst else None
        mine = [result for result in results if result.model == model.label]
        entries = [
            Entry(
                text=change(
                    _over_runs(mine, NO_ATTACK, name),
                    _over_runs(mine, worst, name),
                    _scale(name),
                )
            )
            for name in names
        ]
        rows.append((Entry(text=model.label, note=worst or "not attacked"), *entries))
    return Table(
        caption="Refusal apart from incapacity: before any attack, and after the model's worst one",
        columns=("Model", *(f"{evaluation}, {metric}" for evaluation, metric in names)),
        rows=tuple(rows) if names else (),
    )


def _scale(name: tuple[str, str]) -> Scale:
    return Scale(evaluations=(name[0],), metric=name[1], chance=None)


def _over_runs(results: Sequence[CellResult], attack: str | None, name: tuple[str, str]) -> float | None:
    """At the last step that was measured, mean over seeds."""
    found = []
    for result in results:
        held = [r for r in result.records if result.attack == attack and (r.evaluation, r.metric) == name]
        if held:
            found.append(max(held, key=lambda record: record.step).value)
    return sum(found) / len(found) if found else None


def attack_costs(summary: CampaignSummary, results: Sequence[CellResult]) -> Table:
    """What each attack took, over all models and seeds."""
    rows = []
    for attack in summary.attacks:
        found = mean_costs(result for result in results if result.attack == attack.name)
        memory = found.get("peak_memory")
        rows.append(
            (
                Entry(text=attack.name),
                Entry(text=f"{attack.budget:,}"),
                Entry(text=f"{found['tokens']:,.0f}" if "tokens" in found else NOTHING),
                Entry(text=f"{found['flops']:.2g}" if "flops" in found else NOTHING),
                Entry(text=f"{memory / 1e9:.2g} GB" if memory is not None else NOTHING),
                Entry(text=duration(found["seconds"]) if "seconds" in found else NOTHING),
            )
        )
    return Table(
        caption="What each attack took, mean over models and seeds",
        columns=("Attack", "Updates", "Tokens", "FLOPs", "Peak memory", "Time, measuring left out"),
        rows=tuple(rows),
        notes=(
            "FLOPs are counted from the shapes of every forward and backward pass. Memory: the highest of any run, measuring "
            "included; on a CPU the whole process.",
        ),
    )


def _loss_change(cell: CellSummary) -> str:
    if cell.first_loss is None or cell.last_loss is None:
        return NOTHING
    return f"{cell.first_loss:.2f} → {cell.last_loss:.2f}"


def attacks(summary: CampaignSummary) -> Table:
    """What each attack was, exactly."""
    return Table(
        caption="The attacks and their configurations",
        columns=("Attack", "Steps", "Against the reference", "Configuration"),
        rows=tuple(
            (
                Entry(text=attack.name),
                Entry(text=f"{attack.budget:,}"),
                Entry(text=attack.strength),
                Entry(text=describe(attack.config) or NOTHING),
            )
            for attack in summary.attacks
        ),
    )


def provenance(
    plan: CampaignPlan, summary: CampaignSummary, results: Sequence[CellResult], *, public: bool = False
) -> Table:
    """Where every number comes from: what was run, on what, with which versions; in public no command, path or setting."""
    shown = ("notes", "models", "environment", *plan.models)
    held = {key: value for key, value in plan.details.items() if key not in shown and (not public or key == "protocol")}
    told = ("digest", "stages", "seconds", "tokens", "flops", "seed") if public else None
    facts = {
        "title": plan.title,
        "domain": plan.domain,
        "suite": plan.suite,
        "seeds": ", ".join(map(str, summary.seeds)),
        "runs": f"{len(results)} ended of {len(plan.cells)} planned",
        "run time": duration(sum(result.seconds for result in results)),
        **{
            label: _flat({"role": role, **_only(model_details(plan, label), told)})
            for label, role in plan.models.items()
        },
        **_contents(results),
        **{key: _flat(value) for key, value in held.items()},
        **_digests(plan, results),
        **_environments(results),
    }
    return Table(
        caption="Provenance",
        columns=("What", "Value"),
        rows=tuple((Entry(text=key), Entry(text=value)) for key, value in facts.items() if value),
    )


def _only(details: Mapping[str, Any], keys: Sequence[str] | None) -> dict[str, Any]:
    return {key: value for key, value in details.items() if keys is None or key in keys}


def _contents(results: Sequence[CellResult]) -> dict[str, str]:
    """Hashes of the attacker's rows by role, and of what each evaluation asks."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        for role, content in result.identity.get("data", {}).items():
            seen.setdefault(f"data: {role}", {})[str(content)] = None
        for name, held in result.identity.get("evaluations", {}).items():
            if isinstance(held, list) and len(held) == 2:
                seen.setdefault(f"asked by {name}", {})[str(held[1])] = None
    return {name: ", ".join(values) for name, values in sorted(seen.items())}


def _digests(plan: CampaignPlan, results: Sequence[CellResult]) -> dict[str, str]:
    """Weights that were measured and are not those that the plan names."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        if result.model_digest != model_details(plan, result.model).get("digest"):
            seen.setdefault(f"weights of {result.model}", {})[result.model_digest] = None
    return {name: ", ".join(values) for name, values in seen.items()}


def _environments(results: Sequence[CellResult]) -> dict[str, str]:
    """Versions and hardware, each once; several values mean that runs were made in several places."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        for key, value in result.environment.items():
            seen.setdefault(f"environment: {key}", {})[_flat(value)] = None
    return {name: " | ".join(values) for name, values in seen.items()}


def _flat(value: Any) -> str:
    """Nested provenance on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_flat(inner)}" for key, inner in value.items() if inner not in (None, "", []))
    if isinstance(value, list | tuple):
        return ", ".join(_flat(inner) for inner in value)
    return str(value)


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
