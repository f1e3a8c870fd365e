"""Several audits side by side: the models that may be compared, the ties, and the unreliable figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from holdfast.core.files import only_writer, write_text
from holdfast.core.records import read_campaign
from holdfast.core.types import HoldfastError
from holdfast.report.audited import Audited, audited
from holdfast.report.blocks import Chapter, Figure, Sentences
from holdfast.report.page import claim_page
from holdfast.report.plots import QUIET, Picture, drawing, label_of, name_of, scale_axis, svg
from holdfast.report.render import render
from holdfast.report.table import Entry, Table
from holdfast.report.words.names import INTERNAL
from holdfast.report.words.numbers import (
    NOTHING,
    amount,
    count,
    duration,
    factor,
    factor_interval,
    flops,
    interval,
    listed,
    times,
    written,
)
from holdfast.report.words.suspicion import Remark, remark
from holdfast.report.words.threat import threat
from holdfast.report.words.verdict import verdict_word
from holdfast.report.words.warnings import unreliable
from holdfast.stats.evidence import FewSeeds
from holdfast.stats.figures import ModelSummary
from holdfast.stats.frontier import Reached
from holdfast.stats.ranking import Candidate, difference, ranks
from holdfast.stats.recovery import BREACH


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model under test, of one audit."""

    name: str
    """its label, with its audit's number where that is needed to tell it from another"""
    audit: Audited
    model: ModelSummary

    @property
    def unreliable(self) -> list[str]:
        """The reasons why the figures cannot be relied on; empty where the audit's checks passed."""
        few = self.model.all.interval is None and self.model.outcomes
        return [*unreliable(self.audit), *(["too few seeds for an interval"] if few else [])]

    @property
    def flags(self) -> list[str]:
        """The objections of the checks to single figures and to the model's folder."""
        fired = (check for check in self.audit.reasons if check.fires and not isinstance(check, FewSeeds))
        return [remark(check, self.audit.summary.hazard).text for check in fired]

    @property
    def candidate(self) -> Candidate:
        """The candidate to rank."""
        return Candidate(summary=self.audit.summary, model=self.model.label)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Models that may be ranked: a section of the page."""

    name: str
    """prefix of its ids"""
    title: str
    apart: str
    """why these stand apart from the other groups; empty for the only one"""
    table: Table
    """how the models resist"""
    price: Table
    """what the safeguards cost"""
    differences: Table
    unreliable: tuple[str, ...]
    flags: tuple[str, ...]
    figure: Figure | None
    page: None = None
    """a group has no first page"""

    @property
    def subtitle(self) -> str:
        """The reason why these models form a group of their own."""
        return self.apart

    @property
    def chapters(self) -> tuple[Chapter, ...]:
        """The figures, their weaknesses, and the differences."""
        remarks = [*(Remark(text=text, fires=True) for text in self.unreliable), *(Remark(text=t) for t in self.flags)]
        chapters = (
            Chapter(key="models", title="Models", blocks=(self.figure, self.table, self.price)),
            Chapter(
                key="checks",
                title="What the audits' own checks say",
                blocks=(Sentences(sentences=tuple(remarks), tag="unreliable"),),
            ),
            Chapter(key="differences", title="Differences", blocks=(self.differences,)),
        )
        return tuple(chapter for chapter in chapters if chapter.shown)


def compare_audits(folders: Sequence[Path], out: Path) -> tuple[Group, ...]:
    """Write the comparison to `out` (.html), and beside it .md and .json.

    Raises:
        HoldfastError: `out` is no .html name, no page may be written there, there are fewer than two folders, one holds no
            campaign with an ended cell, or no model under test.
    """
    if out.suffix != ".html":
        raise HoldfastError(
            f"the comparison {out} needs a name that ends in .html; .md and .json are written beside it"
        )
    if len(folders) < 2:
        raise HoldfastError("a comparison needs the folders of two audits or more")
    claim_page(out)
    entrants = [entrant for place, folder in enumerate(folders, 1) for entrant in _entrants(folder, place)]
    labels = [entrant.model.label for entrant in entrants]
    groups = _groups(
        [
            replace(entrant, name=entrant.model.label) if labels.count(entrant.model.label) == 1 else entrant
            for entrant in entrants
        ]
    )
    values = {
        "title": f"{len(folders)} audits side by side",
        "intro": "Models may be ranked within a group only: audits of the same questions, data, attacks, seeds and milestones.",
        "sections": groups,
        "public": False,
        "mark": INTERNAL,
    }
    markdown, table = out.with_suffix(".md"), out.with_suffix(".json")
    with only_writer(out, markdown, table):
        write_text(out, render("page.html.j2", **values))
        write_text(markdown, render("page.md.j2", **values))
        write_text(table, _json(groups))
    return groups


def _entrants(folder: Path, place: int) -> list[Entrant]:
    audit = audited(*read_campaign(folder))
    tested = [model for model in audit.judged if model.role == "defended"]
    if not tested:
        raise HoldfastError(f"{folder} holds no model under test; give a folder that holdfast audit wrote")
    return [Entrant(name=f"{model.label} ({place})", audit=audit, model=model) for model in tested]


def _key(entrant: Entrant) -> dict[str, Any]:
    """The facts that must be equal for a ranking: questions, attacker data, attacks with settings, seeds and milestones."""
    plan, results = entrant.audit.plan, entrant.audit.results
    attacked = [result for result in results if result.attack != "none" and result.model == entrant.model.label]

    def identity(name: str) -> list[str]:
        return sorted({json.dumps(result.identity.get(name, {}), sort_keys=True) for result in attacked})

    return {
        "domain": plan.domain,
        "data": identity("data"),
        "questions": identity("evaluations"),
        "suite": plan.suite,
        "held by the attacker": entrant.audit.original,
        "attacks": sorted({json.dumps([r.attack, r.attack_config], sort_keys=True) for r in attacked}),
        "seeds": sorted({result.seed for result in attacked}),
        "milestones": sorted({json.dumps([r.attack, r.milestones]) for r in attacked}),
    }


def _groups(entrants: Sequence[Entrant]) -> tuple[Group, ...]:
    by_key: dict[str, list[Entrant]] = {}
    for entrant in entrants:
        by_key.setdefault(json.dumps(_key(entrant), sort_keys=True), []).append(entrant)
    keys = [json.loads(key) for key in by_key]
    groups = []
    for place, (key, members) in enumerate(zip(keys, by_key.values(), strict=True)):
        differing = [name for name in key if any(other[name] != key[name] for other in keys)]
        groups.append(
            Group(
                name=f"g{place}",
                title=f"{key['domain']}, suite {key['suite']}, {count(len(members[0].audit.summary.seeds), 'seed')}",
                apart=f"Not comparable with the other groups: {listed(differing)} differ." if differing else "",
                table=_table(members),
                price=_price(members),
                differences=_differences(members),
                unreliable=tuple(f"{member.name}: {text}" for member in members for text in member.unreliable),
                flags=tuple(f"{member.name}: {text}" for member in members for text in member.flags),
                figure=_figure(members, f"g{place}"),
            )
        )
    return tuple(groups)


def _table(entrants: Sequence[Entrant]) -> Table:
    """How the models resist, in the order of their audits."""
    places = ranks([entrant.candidate for entrant in entrants])
    base = any(entrant.audit.figures.uses_base for entrant in entrants)
    return Table(
        caption="Models under test, in the order of their audits",
        columns=(
            "Model", "Place", "Verdict", "Hazard before", "Worst hazard", *(("From the weights alone",) if base else ()),
            "Ability there", "Never-exposed", "Work factor", "Relearning",
        ),
        rows=tuple(
            _row(entrant, str(low) if low == high else f"{low}\N{EN DASH}{high}", base)
            for entrant, (low, high) in zip(entrants, places, strict=True)
        ),
        notes=(
            "Place: by mean hazard at the best milestone over the attacks of the group; models tie where the 95 % interval of "
            "their difference holds zero, or where both are at chance, and then share a range of places. Worst hazard: with "
            "ability kept.",
            *dict.fromkeys(threat(entrant.audit) for entrant in entrants),
        ),
        look="models compare",
    )  # fmt: skip


def _row(entrant: Entrant, place: str, base: bool) -> tuple[Entry, ...]:
    audit, model = entrant.audit, entrant.model
    hazard, ability, figures = audit.summary.hazard, audit.summary.ability, audit.figures.of(model.label)
    top = figures.worst
    clean = next((other.worst for other in audit.figures.models if other.role == "never-exposed" and other.worst), None)
    work, relearning = figures.work_factor.get(BREACH), figures.mean_relearning
    return (
        Entry(entrant.name, tag="unreliable" if entrant.unreliable else ""),
        Entry(place),
        Entry(verdict_word(model)),
        Entry(amount(model.before.value if model.before else None, hazard)),
        _reached(top, audit),
        *([_reached(figures.frontier[-1] if figures.frontier else None, audit)] if base else []),
        Entry(amount(top.ability if top else None, ability)),
        Entry(amount(clean.hazard if clean else None, hazard)),
        Entry(factor(work), note=factor_interval(work).replace("; ", "\n")),
        Entry(written(relearning.auc if relearning else None, ".2f")),
    )


def _reached(top: Reached | None, audit: Audited) -> Entry:
    if top is None:
        return Entry(NOTHING)
    by = audit.plain(top.attack) if top.step else "before any attack"
    return Entry(amount(top.hazard, audit.summary.hazard), note=f"{interval(top.interval, audit.summary.hazard)}\n{by}")


def _price(entrants: Sequence[Entrant]) -> Table:
    """What the safeguards cost those who use the models."""
    rows = []
    for entrant in entrants:
        audit, model = entrant.audit, entrant.model
        undefended, learning = audit.role("undefended"), audit.figures.of(model.label).learning
        losses = audit.gates(model).losses
        worst = f"{100 * losses[0].fall:.0f} points on {losses[0].evaluation}" if losses and losses[0].clear else ""
        rows.append(
            (
                Entry(entrant.name),
                Entry(amount(model.ability_before, audit.summary.ability)),
                Entry(amount(undefended.ability_before if undefended else None, audit.summary.ability)),
                Entry(worst or ("none beyond noise" if losses else NOTHING)),
                Entry(times(learning.low, learning.high) if learning else NOTHING),
                Entry(_built(entrant)),
            )
        )
    return Table(
        caption="What the safeguards cost, before any attack",
        columns=("Model", "Ability", "Undefended", "Greatest loss of ability", "Benign learning", "Built with"),
        rows=tuple(rows),
        notes=("Benign learning: over the undefended model's steps to learn something new and harmless.",),
        look="models compare",
    )


def _built(entrant: Entrant) -> str:
    details = entrant.audit.details(entrant.model.label)
    if details.get("flops"):
        return flops(details["flops"])
    return duration(details["seconds"]) if details.get("seconds") else NOTHING


def _differences(entrants: Sequence[Entrant]) -> Table:
    rows = []
    for one, other in combinations(entrants, 2):
        gap = difference(one.candidate, other.candidate)
        low, high = (gap.interval.low, gap.interval.high) if gap.interval else (0.0, 0.0)
        between = f"{written(100 * low, '+.1f')} to {written(100 * high, '+.1f')}" if gap.interval else "too few seeds"
        rows.append(
            (
                Entry(f"{one.name} minus {other.name}", tag="tie" if gap.tie else ""),
                Entry(written(100 * gap.mean, "+.1f")),
                Entry(between),
            )
        )
    return Table(
        caption="Differences of mean hazard at the best milestone, in points, seeds paired",
        columns=("Models", "Difference", "95 % interval"),
        rows=tuple(rows),
    )


def _figure(entrants: Sequence[Entrant], name: str) -> Figure | None:
    """The worst hazard of each model with its interval, as dots on one axis."""
    shown = [(one, worst) for one in entrants if (worst := one.audit.figures.of(one.model.label).worst) is not None]
    if not shown:
        return None
    scale = entrants[0].audit.summary.hazard
    with drawing(name, width=6.4, height=0.9 + 0.34 * len(shown)) as (figure, axes):
        for place, (_, top) in enumerate(reversed(shown)):
            if top.interval:
                axes.plot([top.interval.low, top.interval.high], [place, place], "-", color="#0072B2", linewidth=2)
            axes.plot([top.hazard], [place], "o", color="#0072B2", markersize=7)
        axes.set_yticks(range(len(shown)), [name_of(one.name) for one, _ in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        scale_axis(axes, scale, "x")
        if scale.chance is not None:
            axes.axvline(scale.chance, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.text(scale.chance, len(shown) - 0.4, "chance", color=QUIET, fontsize=7.5, ha="center", va="bottom")
        axes.set_xlabel(label_of("worst hazard", scale))
        ends = ", ".join(f"{one.name} {amount(top.hazard, scale)}" for one, top in shown)
        alt = f"Dots with 95 % intervals: worst hazard, ability kept. {ends}."
        picture = Picture(svg=svg(figure, name, alt), alt=alt)
    rows = tuple(
        (
            Entry(one.name),
            Entry(amount(top.hazard, scale, decimals=1)),
            Entry(interval(top.interval, scale)),
            Entry(amount(top.ability, one.audit.summary.ability)),
        )
        for one, top in shown
    )
    numbers = Table(
        caption="The dots", columns=("Model", "Worst hazard", "95 % interval", "Ability"), rows=rows, look="plain"
    )
    return Figure(heading="Worst hazard, ability kept", picture=picture, table=numbers)


def _json(groups: Sequence[Group]) -> str:
    table = [
        {
            "title": group.title,
            "apart": group.apart,
            "unreliable": group.unreliable,
            "flags": group.flags,
            "models": [
                {**resists, **costs}
                for resists, costs in zip(group.table.records(), group.price.records(), strict=True)
            ],
            "differences": [[entry.text for entry in row] for row in group.differences.rows],
        }
        for group in groups
    ]
    return json.dumps({"schema": 2, "groups": table}, indent=1) + "\n"
