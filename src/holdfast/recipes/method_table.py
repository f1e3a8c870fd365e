"""What a study found, as a table: every method over its worlds, in Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from holdfast.core.domain import OUTSIDE_RETAIN
from holdfast.core.records import CampaignPlan, read_campaign
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.stats.seeds import t_interval
from holdfast.stats.summary import CampaignSummary, ModelSummary, summarise
from holdfast.testbed.folder import Kind

CHANCE: Mapping[Kind, float] = {"knowledge": 0.25, "refusal": 0.0}
"""The hazard of a model that knows nothing, by the kind of domain."""

_CONTROLS = ("undefended", "never-exposed")


@dataclass(frozen=True, kw_only=True)
class OnWorld:
    """One method on one world; fractions, None where it was not measured."""

    world: int
    before: float | None
    """hazard before any attack"""
    after: float | None
    """hazard at the last step, mean over attacks"""
    worst: float | None
    """the same, of the worst attack"""
    worst_attack: str
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
    """seconds of its own stages over seconds of pretraining, on the same machine"""
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
        known = [value for held in self.worlds if (value := figure(held)) is not None]
        return fmean(known) if known else None


def read_study(study: Study, out: Path) -> dict[str, list[MethodRow]]:
    """Kind of domain -> its rows: the controls, then the methods from the least hazard after attack to the most.

    Raises:
        HoldfastError: no world of it has been attacked yet.
    """
    tables: dict[str, list[MethodRow]] = {}
    for part in study.parts:
        rows: dict[str, list[OnWorld]] = {}
        for world in study.worlds:
            folder = study.folder(out, part, world)
            plan, results = read_campaign(folder)
            summary = summarise(plan, results)
            for method in _rows_of(part):
                rows.setdefault(method.label, []).append(_on_world(method, world, folder, plan, summary))
        held = [
            MethodRow(
                label=method.label,
                stages=method.stages,
                tuned=study.chosen(out, part, method).settings if method.space else {},
                worlds=tuple(rows[method.label]),
            )
            for method in _rows_of(part)
        ]
        controls = [row for row in held if row.label in _CONTROLS]
        methods = [row for row in held if row.label not in _CONTROLS]
        tables[part.kind] = [
            *controls,
            *sorted(methods, key=lambda row: (row.mean(lambda w: w.after) is None, row.mean(lambda w: w.after) or 0.0)),
        ]
    return tables


def markdown(
    study: Study, tables: dict[str, list[MethodRow]], not_run: Mapping[str, Sequence[str]], seconds: float, workers: int
) -> str:
    """The tables, with what they mean above them and what was not run below."""
    lines = []
    for part in study.parts:
        rows = tables[part.kind]
        worlds = ", ".join(map(str, study.worlds))
        lines += [f"## {part.kind.capitalize()}", ""]
        lines += [
            f"Suite `{part.suite}` ({len(part.attacks)} attacks, one seed each) on worlds {worlds}; {_tuning(study, part)}. "
            f"Hazard and ability in percent, chance {100 * CHANCE[part.kind]:.0f} for hazard: the mean over worlds, then each "
            "world. Sorted by hazard after attack; rows under one another whose worlds overlap are ties. "
            f"{_too_few(study)}",
            "",
            f"![Hazard and ability by safeguard]({part.kind}.svg)",
            "",
            "| safeguard | hazard before | after, mean of attacks | after, worst attack | ability kept under | "
            "ability outside retain, before | after | inside, before | benign learning, steps "
            + ("| over-refusal | neither complies nor refuses, before " if part.kind == "refusal" else "")
            + "| cost, share of pretraining |",
            "|" + "---|" * (12 if part.kind == "refusal" else 10),
        ]
        lines += [_line(row, part.kind == "refusal") for row in rows]
        width = 11 if part.kind == "refusal" else 9
        lines += [f"| {label} | not run |" + " |" * (width - 1) for label in not_run.get(part.kind, ())]
        lines.append("")
        failures = [(row.label, held) for row in rows for held in row.worlds if held.failed]
        lines += [f"- {label} on world {held.world} could not be built: {held.failed}" for label, held in failures]
        tuned = [f"`{row.label}` {_settings(row.tuned)}" for row in rows if row.stages and row.tuned]
        plain = [f"`{row.label}`" for row in rows if row.stages and not row.tuned]
        if study.trials:
            lines += [
                f"- Settings that the trials chose: {'; '.join(tuned) or 'none'}. Preset settings: {', '.join(plain) or 'none'}."
            ]
        lines.append("")
    lines.append(f"Wall time of the run that made this: {seconds / 60:.0f} minutes with {workers} processes.")
    return "\n".join(lines) + "\n"


def as_json(tables: dict[str, list[MethodRow]]) -> dict[str, Any]:
    return {kind: [asdict(row) for row in rows] for kind, rows in tables.items()}


def _rows_of(part: Part) -> list[Method]:
    return [*(Method(label=label, stages=()) for label in _CONTROLS), *part.methods]


def _on_world(method: Method, world: int, folder: Path, plan: CampaignPlan, summary: CampaignSummary) -> OnWorld:
    found = next((model for model in summary.models if model.label == method.label), None)
    pairs = [pair for pair in summary.pairs if pair.model == method.label and pair.after is not None]
    worst = found.all.worst if found else None
    abilities = [pair.ability_after for pair in pairs if pair.ability_after is not None]
    return OnWorld(
        world=world,
        before=found.before.value if found and found.before else None,
        after=found.all.mean if found else None,
        worst=worst.after.mean if worst and worst.after else None,
        worst_attack=worst.attack if worst else "",
        kept=sum(pair.keeps_ability is True for pair in pairs),
        attacks=len(pairs),
        ability_before=_untouched(found, OUTSIDE_RETAIN),
        ability_after=fmean(abilities) if abilities else None,
        inside=_untouched(found, "benign_in_retain"),
        learning=found.learning.steps if found and found.learning else None,
        learned=bool(found and found.learning and found.learning.reached),
        over_refusal=_untouched(found, "over_refusal"),
        incoherence=_untouched(found, "incoherence"),
        cost=_cost(method, folder) if found and method.stages else None,
        failed=plan.details.get("not_built", {}).get(method.label, ""),
    )


def _untouched(model: ModelSummary | None, evaluation: str) -> float | None:
    held = model.untouched if model else ()
    return next((measured.value for measured in held if measured.evaluation == evaluation), None)


def _cost(method: Method, folder: Path) -> float | None:
    own = Checkpoint(str(folder / "models" / method.label)).card["stages"][-len(method.stages) :]
    pretraining = Checkpoint(str(folder / "testbed" / "model")).card["seconds"]
    return float(sum(stage["seconds"] for stage in own) / pretraining)


def _line(row: MethodRow, refusal: bool) -> str:
    kept = " / ".join(f"{held.kept} of {held.attacks}" for held in row.worlds)
    learning = [
        f"{'' if held.learned else '≥ '}{held.learning:.0f}" for held in row.worlds if held.learning is not None
    ]
    cost = row.mean(lambda held: held.cost)
    cells = [
        f"**{row.label}**" if row.label in _CONTROLS else row.label,
        _percent(row, lambda held: held.before),
        _percent(row, lambda held: held.after),
        _percent(row, lambda held: held.worst),
        kept,
        _percent(row, lambda held: held.ability_before),
        _percent(row, lambda held: held.ability_after),
        _percent(row, lambda held: held.inside),
        " / ".join(learning),
        *(
            [_percent(row, lambda held: held.over_refusal), _percent(row, lambda held: held.incoherence)]
            if refusal
            else []
        ),
        "" if cost is None else f"{100 * cost:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(row: MethodRow, figure: Callable[[OnWorld], float | None]) -> str:
    mean = row.mean(figure)
    if mean is None:
        return ""
    each = " / ".join("–" if (value := figure(held)) is None else f"{100 * value:.0f}" for held in row.worlds)
    return f"{100 * mean:.0f} ({each})"


def _tuning(study: Study, part: Part) -> str:
    if not study.trials:
        return "nothing is tuned, and every row has the preset's settings but for what its name says"
    under = ", ".join(f"`{name}`" for name in part.tuning_attacks)
    return (
        f"settings chosen on world {study.tuning_world} from {study.trials} trials a method, on the selection questions, "
        f"under {under}"
    )


def _too_few(study: Study) -> str:
    """Whether an interval over worlds can be given."""
    if t_interval([0.0] * len(study.worlds)) is None:
        return f"{len(study.worlds)} worlds are too few for an interval."
    return ""


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
