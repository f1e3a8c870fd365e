"""Hazard before and after attack, a line a model, with the ability left."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.report.audited import Audited
from holdfast.report.table import Entry, Strip, Table
from holdfast.report.words.numbers import NOTHING, amount, change, interval, spread
from holdfast.report.words.threat import threat
from holdfast.report.words.verdict import verdict_word
from holdfast.stats.cells import Scale
from holdfast.stats.figures import ANCHOR_ROLES, CampaignSummary, ModelSummary, Over
from holdfast.stats.seeds import Estimate


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
    """before any attack → where the hazard is worst"""
    resisted: str
    """n of m attacks resisted with ability kept"""
    summary: ModelSummary


def verdict_rows(audit: Audited) -> list[VerdictRow]:
    """One row a model: undefended, reference, defended, never-exposed."""
    return [_row(model, audit) for model in audit.summary.models]


def _row(model: ModelSummary, audit: Audited) -> VerdictRow:
    hazard, worst = audit.summary.hazard, audit.figures.of(model.label).worst
    anchor = model.role in ANCHOR_ROLES
    return VerdictRow(
        model=model.label,
        role=model.role,
        verdict="" if anchor else verdict_word(model),
        before=amount(model.before.value if model.before else None, hazard),
        mean=amount(model.all.mean, hazard),
        mean_kept=amount(model.kept.mean, hazard),
        worst=amount(worst.hazard if worst else None, hazard),
        worst_attack=NOTHING if worst is None else audit.names(worst.attack) if worst.step else "before any attack",
        ability=change(model.ability_before, worst.ability, audit.summary.ability) if worst else NOTHING,
        resisted=NOTHING if anchor or not model.counted else f"{model.resisted} of {model.counted}",
        summary=model,
    )


def verdict(audit: Audited) -> Table:
    """The verdict table: hazard, with the ability left, per model."""
    hazard = audit.summary.hazard
    strips = hazard.metric != "nats"
    rows = []
    for row in verdict_rows(audit):
        all, worst = row.summary.all, audit.figures.of(row.model).worst
        rows.append(
            (
                Entry(row.model, note=row.role, tag=row.verdict),
                Entry(row.before),
                Entry(row.mean, note=f"median {amount(all.median, hazard)}" if all.attacks else ""),
                Entry(row.mean_kept, note=f"{row.summary.kept.attacks} of {all.attacks}" if all.attacks else ""),
                Entry(
                    text=row.worst,
                    note=interval(worst.interval, hazard) if worst else "",
                    link=audit.runs(row.model, worst.attack) if worst and worst.step else "",
                ),
                Entry(row.worst_attack),
                Entry(row.ability),
                Entry(row.resisted),
                *([Entry("", strip=_strip(row.summary, audit))] if strips else []),
            )
        )
    columns = ("Model", "Hazard before", "Mean after", "Mean, ability kept", "Worst hazard", "Reached by")
    last = ("Ability there", "Resisted", *(("0\N{EN DASH}100 %",) if strips else ()))
    return Table(
        caption="Hazard knowledge before and after attack, with the ability left where hazard is worst",
        columns=(*columns, *last),
        rows=tuple(rows),
        notes=(*_levels(audit.summary), threat(audit)),
        look="verdict",
    )


def _levels(summary: CampaignSummary) -> list[str]:
    marks = []
    if summary.hazard.chance is not None:
        marks.append(f"Chance is {amount(summary.hazard.chance, summary.hazard)}.")
    if summary.floor is not None:
        marks.append(f"The never-exposed model is at {amount(summary.floor, summary.hazard)} after attack, on average.")
    return marks


def _strip(model: ModelSummary, audit: Audited) -> Strip | None:
    summary, worst = audit.summary, audit.figures.of(model.label).worst
    if model.all.mean is None or worst is None:
        return None
    return Strip(mean=model.all.mean, high=worst.hazard, chance=summary.hazard.chance, floor=summary.floor)


def over_seeds(estimate: Estimate | None, scale: Scale) -> str:
    """The number of seeds and the range of their values."""
    if estimate is None:
        return ""
    return "one seed" if estimate.seeds == 1 else f"{estimate.seeds} seeds: {spread(estimate, scale)}"


def intervals(audit: Audited) -> Table:
    """The basis of the means: attacks, seeds, standard errors and intervals."""
    hazard = audit.summary.hazard

    def row(model: ModelSummary, name: str, over: Over) -> tuple[Entry, ...]:
        return (
            Entry(model.label, note=name),
            Entry(str(over.attacks)),
            Entry(
                text=amount(over.mean, hazard, decimals=1),
                note=f"± {amount(over.stderr, hazard, decimals=1)}" if over.attacks else "",
            ),
            Entry(amount(over.median, hazard, decimals=1)),
            Entry(interval(over.interval, hazard) if over.attacks else NOTHING),
        )

    return Table(
        caption="Mean and median hazard after attack, over all attacks and over those that keep ability",
        columns=("Model", "Attacks", "Mean", "Median", "95 % interval"),
        rows=tuple(
            row(model, name, over)
            for model in audit.summary.models
            if model.all.attacks
            for name, over in (("all attacks", model.all), ("ability kept", model.kept))
        ),
        notes=(
            "± is one standard error, questions and seeds combined; a difference within two of them is no difference.",
        ),
        look="facts",
        folded="Means, medians and intervals",
    )
