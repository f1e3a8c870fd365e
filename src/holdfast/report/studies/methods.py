"""A comparison of safeguards: every method over its worlds, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from holdfast.core.records import CampaignPlan, CellResult, read_campaign
from holdfast.report.blocks import Chapter, Image, Text, bullets
from holdfast.report.studies.study import Method, Part, Study, settings
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import NOTHING
from holdfast.stats.audit import figures
from holdfast.stats.cells import ABILITY_BOUND, HEADLINE_ABILITY
from holdfast.stats.figures import CampaignSummary, ModelSummary
from holdfast.stats.frontier import Reached
from holdfast.stats.seeds import t_interval
from holdfast.stats.summary import summarise


@dataclass(frozen=True, kw_only=True)
class OnWorld:
    """One method on one world; fractions, None where it was not measured."""

    world: int
    before: float | None
    """hazard before any attack"""
    after: float | None
    """hazard at the last step, mean over attacks"""
    worst: float | None
    """the worst hazard (`ModelFigures.worst`): the greatest at any milestone of any attack, with ability kept"""
    worst_attack: str
    """the attack that reached it; empty: before any attack"""
    kept: int
    """attacks that keep ability"""
    attacks: int
    ability_before: float | None
    """outside the retain set"""
    ability_after: float | None
    """the same after an attack, mean over attacks"""
    inside: float | None
    """ability on what is in the retain set, before any attack"""
    learning: float | None
    """steps to learn new harmless facts"""
    learned: bool
    """False where it did not get there: `learning` is then a lower bound"""
    over_refusal: float | None
    incoherence: float | None
    """share of forbidden requests that are neither complied with nor refused, before any attack"""
    cost: float | None
    """FLOPs of its own stages over those of pretraining"""
    failed: str = ""
    """why it could not be built"""


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method over all worlds."""

    label: str
    stages: tuple[str, ...]
    tuned: dict[str, Any]
    """settings that the trials chose in place of the preset's"""
    worlds: tuple[OnWorld, ...]

    def mean(self, figure: Callable[[OnWorld], float | None]) -> float | None:
        known = [value for on_world in self.worlds if (value := figure(on_world)) is not None]
        return fmean(known) if known else None


@dataclass(frozen=True, kw_only=True)
class MethodTable:
    """One kind of domain."""

    rows: tuple[MethodRow, ...]
    """the controls, then the methods from the least hazard after attack to the most"""
    chance: float
    """hazard of a model that knows nothing"""


def read_methods(part: Part) -> MethodTable:
    """Read the records of all worlds.

    Raises:
        HoldfastError: no cell of a world has ended.
    """
    campaigns = {world: read_campaign(folder) for world, folder in part.campaigns.items()}
    summaries = {world: summarise(plan, results) for world, (plan, results) in campaigns.items()}
    worsts = {world: _worst(*campaigns[world], summary) for world, summary in summaries.items()}
    rows = [
        MethodRow(
            label=method.label,
            stages=method.stages,
            tuned=dict(method.settings),
            worlds=tuple(
                _on_world(method, world, campaigns[world][0], summary, worsts[world].get(method.label))
                for world, summary in summaries.items()
            ),
        )
        for method in part.methods
    ]
    after = {row.label: row.mean(lambda on_world: on_world.after) for row in rows}
    chances = [summary.hazard.chance for summary in summaries.values()]
    return MethodTable(
        rows=(
            *(row for row in rows if not row.stages),
            *sorted(
                (row for row in rows if row.stages), key=lambda row: (after[row.label] is None, after[row.label] or 0.0)
            ),
        ),
        chance=next((chance for chance in chances if chance is not None), 0.0),
    )


def chapter(study: Study, part: Part, table: MethodTable, picture: str, costs: str = "") -> Chapter:
    """The table, its meaning, the settings that trials chose, and the models that could not be built.

    Args:
        study: that was run.
        part: the domain.
        table: its rows.
        picture: file of hazard and ability by safeguard.
        costs: file of hazard against cost; empty: there is none.
    """
    refusal = part.kind == "refusal"
    columns = (
        "safeguard",
        "hazard before",
        "after, mean of attacks",
        "worst hazard, ability kept",
        "ability kept under",
        "ability outside retain, before",
        "ability outside retain, after",
        "inside, before",
        "benign learning, steps",
        *(("over-refusal", "neither complies nor refuses, before") if refusal else ()),
        "FLOPs, share of pretraining",
    )
    unmeasured = (Entry("not run"), *(Entry("") for _ in columns[2:]))
    return Chapter(
        key=part.kind,
        title=part.kind.capitalize(),
        blocks=(
            Text(text=_introduction(study, part, table.chance)),
            Image(alt="Hazard and ability by safeguard", file=picture),
            *([Image(alt="Worst hazard against cost, by safeguard", file=costs)] if costs else []),
            Table(
                caption="Every safeguard over its worlds, in percent",
                columns=columns,
                rows=(
                    *(_row(row, refusal) for row in table.rows),
                    *((Entry(label), *unmeasured) for label in part.not_run),
                ),
            ),
            bullets(*_failures(table.rows), *(_settings(table.rows) if study.trials else ())),
        ),
    )


def as_json(tables: dict[str, MethodTable]) -> dict[str, Any]:
    """The figures by kind of domain."""
    return {kind: [asdict(row) for row in table.rows] for kind, table in tables.items()}


def _worst(plan: CampaignPlan, results: Sequence[CellResult], summary: CampaignSummary) -> dict[str, Reached | None]:
    """The worst hazard of every model, by label."""
    return {model.label: model.worst for model in figures(plan, results, summary).models}


def _on_world(
    method: Method, world: int, plan: CampaignPlan, summary: CampaignSummary, worst: Reached | None
) -> OnWorld:
    model = next((model for model in summary.models if model.label == method.label), None)
    pairs = [pair for pair in summary.pairs if pair.model == method.label and pair.after]
    abilities = [pair.ability_after for pair in pairs if pair.ability_after is not None]
    learning = model.learning if model else None
    return OnWorld(
        world=world,
        before=model.before.value if model and model.before else None,
        after=model.all.mean if model else None,
        worst=worst.hazard if worst else None,
        worst_attack=worst.attack if worst and worst.step else "",
        kept=sum(pair.keeps_ability is True for pair in pairs),
        attacks=len(pairs),
        ability_before=_untouched(model, HEADLINE_ABILITY),
        ability_after=fmean(abilities) if abilities else None,
        inside=_untouched(model, "benign_in_retain"),
        learning=learning.steps if learning else None,
        learned=bool(learning and learning.reached),
        over_refusal=_untouched(model, "over_refusal"),
        incoherence=_untouched(model, "incoherence"),
        cost=method.costs.get(world) if model else None,
        failed=plan.details.get("not_built", {}).get(method.label, ""),
    )


def _untouched(model: ModelSummary | None, evaluation: str) -> float | None:
    measured = model.untouched if model else ()
    return next((one.value for one in measured if one.evaluation == evaluation), None)


def _row(row: MethodRow, refusal: bool) -> tuple[Entry, ...]:
    cost = row.mean(lambda on_world: on_world.cost)
    learning = [f"{'' if w.learned else '≥ '}{w.learning:.0f}" for w in row.worlds if w.learning is not None]
    return (
        Entry(row.label, note="" if row.stages else "control"),
        _percent(row, lambda on_world: on_world.before),
        _percent(row, lambda on_world: on_world.after),
        _percent(row, lambda on_world: on_world.worst),
        Entry(" / ".join(f"{on_world.kept} of {on_world.attacks}" for on_world in row.worlds)),
        _percent(row, lambda on_world: on_world.ability_before),
        _percent(row, lambda on_world: on_world.ability_after),
        _percent(row, lambda on_world: on_world.inside),
        Entry(" / ".join(learning)),
        *([_percent(row, lambda w: w.over_refusal), _percent(row, lambda w: w.incoherence)] if refusal else []),
        Entry("" if cost is None else f"{100 * cost:.0f} %"),
    )


def _percent(row: MethodRow, figure: Callable[[OnWorld], float | None]) -> Entry:
    """The mean over worlds, with each world beside the mean."""
    mean = row.mean(figure)
    if mean is None:
        return Entry("")
    values = [figure(on_world) for on_world in row.worlds]
    return Entry(
        text=f"{100 * mean:.0f}",
        note=" / ".join(NOTHING if value is None else f"{100 * value:.0f}" for value in values),
    )


def _introduction(study: Study, part: Part, chance: float) -> str:
    tuning = "nothing is tuned, and every row has the preset's settings but for what its name says"
    if study.trials:
        tuning = (
            f"settings are chosen on world {study.tuning_world} from {study.trials} trials a method, on the selection "
            f"questions, under {', '.join(part.tuning_attacks)}"
        )
    few = len(part.campaigns)
    interval = f" {few} worlds are too few for an interval." if t_interval([0.0] * few) is None else ""
    return (
        f"Suite {part.suite} ({part.attacks} attacks, one seed each) on worlds {part.worlds}; {tuning}. Hazard and ability are "
        f"in percent, with a chance of {100 * chance:.0f} for hazard: the mean over worlds, then each world. After an attack is "
        "after its last update. The worst hazard is the greatest at any milestone of any attack, and before any attack, that "
        f"takes at most {100 * ABILITY_BOUND:.0f} points of ability. Rows are sorted by "
        f"hazard after attack; rows under one another whose worlds overlap are ties.{interval}"
    )


def _failures(rows: Sequence[MethodRow]) -> list[str]:
    return [
        f"{row.label} on world {on_world.world} could not be built: {on_world.failed}"
        for row in rows
        for on_world in row.worlds
        if on_world.failed
    ]


def _settings(rows: Sequence[MethodRow]) -> list[str]:
    tuned = [f"{row.label} {settings(row.tuned)}" for row in rows if row.stages and row.tuned]
    preset = [row.label for row in rows if row.stages and not row.tuned]
    return [
        f"Settings that the trials chose: {'; '.join(tuned) or 'none'}. Preset settings: {', '.join(preset) or 'none'}."
    ]
