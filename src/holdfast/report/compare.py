"""Several audits side by side: what may be compared, what ties, and what cannot be relied on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.core.files import write_text
from holdfast.core.records import CampaignPlan, CellResult, read_campaign
from holdfast.core.types import HoldfastError
from holdfast.report import audit_tables, tables
from holdfast.report.markdown import escape, render_table
from holdfast.report.page import environment
from holdfast.report.plots import QUIET, Picture, drawing, label_of, scale_axis, svg
from holdfast.report.section import Figure
from holdfast.report.tables import Entry, Table
from holdfast.report.wording import (
    INTERNAL,
    NOTHING,
    amount,
    duration,
    factor,
    factor_interval,
    flops,
    interval,
    judged,
    listed,
)
from holdfast.stats.audit import AuditFigures, figures
from holdfast.stats.recovery import BREACH
from holdfast.stats.seeds import NOISE, Interval, spread
from holdfast.stats.summary import CampaignSummary, ModelSummary, Pair, summarise
from holdfast.stats.suspicion import suspicions


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model under test, of one audit."""

    name: str
    """its label, with its audit's number where that is needed to tell it from another"""
    plan: CampaignPlan
    results: Sequence[CellResult]
    summary: CampaignSummary
    figures: AuditFigures
    model: ModelSummary

    @property
    def unreliable(self) -> list[str]:
        """Why its figures cannot be relied on; empty where the audit's own checks held."""
        told = audit_tables.unreliable(self.plan, self.summary)
        if self.model.all.interval is None and self.model.outcomes:
            told.append("too few seeds for an interval")
        return told

    @property
    def flags(self) -> list[str]:
        """What the checks of the attacks say against single figures."""
        return [held.text for held in suspicions(self.summary, self.results) if held.fires]

    @property
    def pairs(self) -> dict[str, Pair]:
        return {pair.attack: pair for pair in self.summary.pairs if pair.model == self.model.label}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Models that may be ranked."""

    title: str
    apart: str
    """why these stand apart from the other groups; empty for the only one"""
    table: Table
    differences: Table
    unreliable: tuple[str, ...]
    flags: tuple[str, ...]
    figure: Figure | None


def compare_audits(folders: Sequence[Path], out: Path) -> tuple[Group, ...]:
    """Write the comparison to `out` (.html), and beside it .md and .json.

    Raises:
        HoldfastError: `out` is no .html name, there are fewer than two folders, one holds no campaign with an ended cell, or
            no model under test.
    """
    if out.suffix != ".html":
        raise HoldfastError(
            f"the comparison {out} needs a name that ends in .html; .md and .json are written beside it"
        )
    if len(folders) < 2:
        raise HoldfastError("a comparison needs the folders of two audits or more")
    entrants = [entrant for place, folder in enumerate(folders, 1) for entrant in _entrants(folder, place)]
    labels = [held.model.label for held in entrants]
    entrants = [_renamed(held, labels) for held in entrants]
    by_key: dict[str, list[Entrant]] = {}
    for held in entrants:
        by_key.setdefault(json.dumps(_key(held), sort_keys=True), []).append(held)
    groups = tuple(_group(held, place, list(by_key)) for place, held in enumerate(by_key.values()))
    title = f"{len(folders)} audits side by side"
    page = environment().get_template("compare.html.j2").render(title=title, groups=groups, mark=INTERNAL)
    texts = {out: page, out.with_suffix(".md"): _markdown(title, groups), out.with_suffix(".json"): _json(groups)}
    for path, text in texts.items():
        write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return groups


def _entrants(folder: Path, place: int) -> list[Entrant]:
    plan, results = read_campaign(folder)
    summary = summarise(plan, results)
    found = figures(plan, results, summary)
    tested = [model for model in judged(summary) if model.role == "defended"]
    if not tested:
        raise HoldfastError(f"{folder} holds no model under test; give a folder that holdfast audit wrote")
    return [
        Entrant(
            name=f"{model.label} ({place})", plan=plan, results=results, summary=summary, figures=found, model=model
        )
        for model in tested
    ]


def _renamed(held: Entrant, labels: Sequence[str]) -> Entrant:
    return replace(held, name=held.model.label) if labels.count(held.model.label) == 1 else held


def _key(held: Entrant) -> dict[str, Any]:
    """What has to be alike for a ranking: questions, the attacker's data, attacks with their settings, seeds and milestones."""
    attacked = [result for result in held.results if result.attack != "none" and result.model == held.model.label]
    data = {json.dumps(result.identity.get("data", {}), sort_keys=True) for result in attacked}
    asked = {json.dumps(result.identity.get("evaluations", {}), sort_keys=True) for result in attacked}
    return {
        "domain": held.plan.domain,
        "data": sorted(data),
        "questions": sorted(asked),
        "suite": held.plan.suite,
        "attacks": sorted({json.dumps([r.attack, r.attack_config], sort_keys=True) for r in attacked}),
        "seeds": sorted({result.seed for result in attacked}),
        "milestones": sorted({json.dumps([r.attack, r.milestones]) for r in attacked}),
    }


def _group(held: Sequence[Entrant], place: int, keys: Sequence[str]) -> Group:
    own = json.loads(keys[place])
    differing = [name for name in own if any(json.loads(key)[name] != own[name] for key in keys)]
    seeds = len(held[0].summary.seeds)
    return Group(
        title=f"{own['domain']}, suite {own['suite']}, {seeds} seed{'s' if seeds > 1 else ''}",
        apart=f"Not comparable with the other groups: {listed(differing)} differ." if differing else "",
        table=_table(held),
        differences=_differences(held),
        unreliable=tuple(f"{one.name}: {told}" for one in held for told in one.unreliable),
        flags=tuple(f"{one.name}: {told}" for one in held for told in one.flags),
        figure=_figure(held, f"g{place}"),
    )


def difference(one: Entrant, other: Entrant) -> tuple[float, Interval | None, bool]:
    """Mean hazard of one model minus another's over the attacks they share; its interval; whether they tie.

    Seeds are paired and the questions' errors added, as if they were independent: a tie is called rather too often.
    """
    shared = [name for name, pair in one.pairs.items() if pair.peak and (held := other.pairs.get(name)) and held.peak]
    by_seed = [_by_seed(held, shared) for held in (one, other)]
    paired = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0] if seed in by_seed[1]]
    if not paired:
        return 0.0, None, True
    means = [[pair.peak for name, pair in held.pairs.items() if name in shared and pair.peak] for held in (one, other)]
    errors = [sum(found.question_stderr**2 for found in peaks) / len(peaks) for peaks in means]
    gap = spread(paired, sum(errors))
    found, chance = gap.interval(), one.summary.hazard.chance
    levels = [sum(found.mean for found in peaks) / len(peaks) for peaks in means]
    at_chance = chance is not None and all(
        abs(level - chance) <= NOISE * error**0.5 for level, error in zip(levels, errors, strict=True)
    )
    return gap.mean, found, found is None or found.low <= 0 <= found.high or at_chance


def _by_seed(held: Entrant, attacks: Sequence[str]) -> dict[int, float]:
    """The mean over attacks of each seed's hazard at the attack's best milestone."""
    values: dict[int, dict[str, float]] = {}
    for cell in held.summary.cells:
        pair = held.pairs.get(cell.attack)
        if cell.model != held.model.label or cell.attack not in attacks or not cell.counts or pair is None:
            continue
        point = cell.at(pair.peak_step or 0)
        for seed in (cell.seed,) if cell.draws else held.summary.seeds:
            if point is not None:
                values.setdefault(seed, {})[cell.attack] = point.value
    return {seed: sum(own.values()) / len(own) for seed, own in values.items() if len(own) == len(attacks)}


def ranks(held: Sequence[Entrant]) -> list[str]:
    """The range of places of each model: from 1 + those that are better to all but those that are worse.

    A range and no place, since ties are not transitive.
    """
    found = []
    for one in held:
        better = worse = 0
        for other in held:
            if other is not one:
                gap, _, tie = difference(one, other)
                worse += not tie and one.summary.hazard.sign * gap < 0
                better += not tie and one.summary.hazard.sign * gap > 0
        low, high = 1 + better, len(held) - worse
        found.append(str(low) if low == high else f"{low}\N{EN DASH}{high}")
    return found


def _table(held: Sequence[Entrant]) -> Table:
    rows = []
    for one, place in zip(held, ranks(held), strict=True):
        hazard, own = one.summary.hazard, one.figures.of(one.model.label)
        top = own.frontier[-1] if own.frontier else None
        clean = next((model for model in one.figures.models if model.role == "never-exposed" and model.frontier), None)
        work, auc = own.work_factor.get(BREACH), own.mean_relearning
        undefended = next((model for model in one.summary.models if model.role == "undefended"), None)
        rows.append(
            (
                Entry(text=one.name, tag="unreliable" if one.unreliable else one.model.verdict),
                Entry(text=place),
                Entry(text=one.model.verdict),
                Entry(text=amount(one.model.before.value if one.model.before else None, hazard)),
                Entry(
                    text=amount(top.hazard if top else None, hazard),
                    note=f"{interval(top.interval, hazard)}, {top.attack}" if top else "",
                ),
                Entry(text=amount(top.ability if top else None, one.summary.ability)),
                Entry(text=amount(own.with_base[-1].hazard if own.with_base else None, hazard)),
                Entry(text=amount(clean.frontier[-1].hazard if clean else None, hazard)),
                Entry(text=factor(work), note=factor_interval(work)),
                Entry(text=f"{auc.auc:.2f}".replace("-", "\N{MINUS SIGN}") if auc else NOTHING),
                Entry(
                    text=amount(one.model.ability_before, one.summary.ability),
                    note=f"undefended {amount(undefended.ability_before, one.summary.ability)}" if undefended else "",
                ),
                Entry(
                    text=f"{one.model.learning.ratio:.1f} ×"
                    if one.model.learning and one.model.learning.ratio
                    else NOTHING
                ),
                Entry(text=_cost(one)),
            )
        )
    return Table(
        caption="Models under test, in the order of their audits",
        columns=(
            "Model", "Place", "Verdict", "Hazard before", "Worst hazard, ability kept", "Ability there", "With the original",
            "Never-exposed", "Work factor", "Relearning", "Ability before", "Benign learning", "Built with",
        ),
        rows=tuple(rows),
        notes=(
            "Place: by mean hazard at the best milestone over the attacks of the group; models tie where the 95 % interval of "
            "their difference holds zero, or where both are at chance, and then share a range of places.",
        ),
    )  # fmt: skip


def _cost(one: Entrant) -> str:
    details = tables.model_details(one.plan, one.model.label)
    if details.get("flops"):
        return flops(details["flops"])
    return duration(details["seconds"]) if details.get("seconds") else NOTHING


def _differences(held: Sequence[Entrant]) -> Table:
    rows = []
    for place, one in enumerate(held):
        for other in held[place + 1 :]:
            gap, found, tie = difference(one, other)
            between = "too few seeds" if found is None else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
            rows.append(
                (
                    Entry(text=f"{one.name} minus {other.name}", tag="tie" if tie else ""),
                    Entry(text=f"{100 * gap:+.1f}".replace("-", "\N{MINUS SIGN}")),
                    Entry(text=between.replace("-", "\N{MINUS SIGN}")),
                )
            )
    return Table(
        caption="Differences of mean hazard at the best milestone, in points, seeds paired",
        columns=("Models", "Difference", "95 % interval"),
        rows=tuple(rows),
    )


def _figure(held: Sequence[Entrant], name: str) -> Figure | None:
    """The worst hazard of each model with its interval, as dots on one axis."""
    shown = [(one, own[-1]) for one in held if (own := one.figures.of(one.model.label).frontier)]
    if not shown:
        return None
    scale = held[0].summary.hazard
    with drawing(name, width=6.4, height=0.9 + 0.34 * len(shown)) as (figure, axes):
        for place, (_, top) in enumerate(reversed(shown)):
            if top.interval:
                axes.plot([top.interval.low, top.interval.high], [place, place], "-", color="#0072B2", linewidth=2)
            axes.plot([top.hazard], [place], "o", color="#0072B2", markersize=7)
        axes.set_yticks(range(len(shown)), [one.name for one, _ in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        scale_axis(axes, scale, "x")
        if scale.chance is not None:
            axes.axvline(scale.chance, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.text(scale.chance, len(shown) - 0.4, "chance", color=QUIET, fontsize=7.5, ha="center", va="bottom")
        axes.set_xlabel(label_of("worst hazard, ability kept", scale))
        ends = ", ".join(f"{one.name} {amount(top.hazard, scale)}" for one, top in shown)
        alt = f"Dots with 95 % intervals: worst hazard with ability kept. {ends}."
        picture = Picture(svg=svg(figure, name, alt), alt=alt)
    rows = tuple(
        (
            Entry(text=one.name),
            Entry(text=amount(top.hazard, scale, decimals=1)),
            Entry(text=interval(top.interval, scale)),
            Entry(text=amount(top.ability, one.summary.ability)),
        )
        for one, top in shown
    )
    numbers = Table(caption="The dots", columns=("Model", "Worst hazard", "95 % interval", "Ability"), rows=rows)
    return Figure(heading="Worst hazard from the weights alone, ability kept", tag="", picture=picture, table=numbers)


def _markdown(title: str, groups: Sequence[Group]) -> str:
    lines = [f"# {escape(title)}", ""]
    for group in groups:
        lines += [f"## {escape(group.title)}", "", escape(group.apart), "", *render_table(group.table)]
        lines += [f"- **Unreliable.** {escape(told)}" for told in group.unreliable]
        lines += [f"- {escape(told)}" for told in group.flags]
        lines += ["", *(render_table(group.differences) if group.differences.rows else [])]
    return "\n".join(lines).rstrip() + "\n"


def _json(groups: Sequence[Group]) -> str:
    told = [
        {
            "title": group.title,
            "apart": group.apart,
            "unreliable": group.unreliable,
            "flags": group.flags,
            "models": [dict(zip(group.table.columns, (e.text for e in row), strict=True)) for row in group.table.rows],
            "differences": [[entry.text for entry in row] for row in group.differences.rows],
        }
        for group in groups
    ]
    return json.dumps({"schema": 1, "groups": told}, indent=1) + "\n"
