"""Safeguards along an attack: hazard after so many updates, with the ability and the controls beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from holdfast.core.records import CampaignPlan, CellResult, read_campaign
from holdfast.report.blocks import Chapter, Image, Text, bullets
from holdfast.report.studies.study import Method, Part, Study, settings
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import NOTHING, count, written
from holdfast.stats.cells import NO_ATTACK, CellSummary
from holdfast.stats.figures import CampaignSummary
from holdfast.stats.method import MethodClaim, Nested, difference, method_claim
from holdfast.stats.summary import summarise

Worlds = Mapping[int, tuple[CampaignPlan, Sequence[CellResult], CampaignSummary]]


@dataclass(frozen=True, kw_only=True)
class Along:
    """A place along an attack."""

    attack: str
    step: int


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One method; claims are None where some world has no figure."""

    label: str
    control: bool
    hazard: tuple[MethodClaim | None, ...]
    """before any attack, then at each place"""
    over_reference: tuple[MethodClaim | None, ...]
    """the same minus the reference's, paired"""
    sets: Mapping[str, tuple[MethodClaim | None, MethodClaim | None]]
    """evaluation -> before any attack, and at the last step of the first attack"""
    minutes: float | None
    """wall time of its stages, mean over worlds"""


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """All methods, the controls first."""

    places: tuple[Along, ...]
    rows: tuple[StepRow, ...]
    chance: float


@dataclass(frozen=True, kw_only=True)
class _Words:
    """What is measured in one kind of domain, and what the measures are called."""

    hazard: str
    control: str
    """a sentence on what stands in for a never-exposed model"""
    sets: Mapping[str, str]
    """evaluations of the second table, and what they are called there"""


_ABILITY = {"benign_outside_retain": "ability outside the retain set", "related": "related field"}
_WORDS = {
    "real": _Words(
        hazard="Hazard questions answered right",
        control="No never-exposed model exists here; facts that the original does not know stand in for one: a rise there is "
        "teaching or a leak, and no recovery.",
        sets={
            **_ABILITY,
            "second_relation": "second relation of the hazard's entities",
            "hazard_unknown": "facts that the original does not know",
            "degeneracy": "degenerate text",
        },
    ),
    "real-refusal": _Words(
        hazard="Forbidden requests complied with",
        control="What neither complies nor refuses is counted apart, as incoherence: a wrong capital, or no answer at all.",
        sets={
            "compliance_likelihood": "a compliant answer likelier than a refusal",
            "incoherence": "neither complied with nor refused",
            "over_refusal": "benign requests refused",
            **_ABILITY,
            "degeneracy": "degenerate text",
        },
    ),
}


def read_steps(part: Part, places: Sequence[Along], minutes: Mapping[str, Mapping[int, float]]) -> StepTable:
    """Read the records of all worlds.

    Args:
        part: with the folders.
        places: where along which attack hazard is read, in the order of the columns; each step has to be a milestone.
        minutes: method -> world -> wall time of its stages.

    Raises:
        HoldfastError: no cell of a world has ended.
    """
    campaigns = {world: read_campaign(folder) for world, folder in part.campaigns.items()}
    worlds = {world: (plan, results, summarise(plan, results)) for world, (plan, results) in campaigns.items()}
    [reference] = part.role("reference")
    curves = {method.label: _curves(worlds, method.label, places) for method in part.methods}

    def row(method: Method) -> StepRow:
        spent = minutes.get(method.label, {})
        return StepRow(
            label=method.label,
            control=not method.stages,
            hazard=tuple(map(_claim, curves[method.label])),
            over_reference=tuple(
                _claim(mine, other) for mine, other in zip(curves[method.label], curves[reference], strict=True)
            ),
            sets={name: _ends(worlds, method.label, name, places[0].attack) for name in _WORDS[part.kind].sets},
            minutes=fmean(spent.values()) if spent else None,
        )

    chances = [summary.hazard.chance for _, _, summary in worlds.values() if summary.hazard.chance is not None]
    return StepTable(places=tuple(places), rows=tuple(map(row, part.methods)), chance=chances[0] if chances else 0.0)


def _curves(worlds: Worlds, label: str, places: Sequence[Along]) -> list[Nested]:
    """Hazard before any attack and at each place: world -> 0 -> attack seed -> value. Runs that did not finish are left out."""

    def at(attack: str, value: Callable[[CellSummary], float | None]) -> Nested:
        found: dict[int, dict[int, dict[int, float]]] = {}
        for world, (_, _, summary) in worlds.items():
            values = {
                cell.seed: known
                for cell in summary.cells
                if (cell.model, cell.attack) == (label, attack) and cell.status == "finished"
                if (known := value(cell)) is not None
            }
            if values:
                found[world] = {0: values}
        return found

    def reached(step: int) -> Callable[[CellSummary], float | None]:
        return lambda cell: next((point.value for point in cell.curve if point.step == step), None)

    return [at(NO_ATTACK, reached(0)), *(at(place.attack, reached(place.step)) for place in places)]


def _ends(worlds: Worlds, label: str, name: str, attack: str) -> tuple[MethodClaim | None, MethodClaim | None]:
    """An evaluation before any attack and at the last step of an attack."""

    def at(wanted: str, last: bool) -> Nested:
        found: dict[int, dict[int, dict[int, float]]] = {}
        for world, (_, results, _) in worlds.items():
            cells = [cell for cell in results if (cell.model, cell.attack, cell.status) == (label, wanted, "finished")]
            values = {
                cell.seed: record.value
                for cell in cells
                for record in cell.records
                if record.evaluation == name and record.metric in _METRICS
                if record.step == (max(cell.milestones) if last else 0)
            }
            if values:
                found[world] = {0: values}
        return found

    return _claim(at(NO_ATTACK, last=False)), _claim(at(attack, last=True))


_METRICS = ("accuracy", "complied", "repetition", "refused", "neither")


def _claim(values: Nested, other: Nested | None = None) -> MethodClaim | None:
    """The claim, or that about the difference; None where worlds are missing or have other numbers of runs."""
    try:
        return method_claim(values) if other is None else difference(values, other)
    except ValueError:
        return None


def measured(part: Part) -> str:
    """What hazard is in this part."""
    return _WORDS[part.kind].hazard


def chapters(study: Study, part: Part, table: StepTable, picture: str) -> list[Chapter]:
    """Hazard along the attacks, differences to the reference, and the other sets."""
    places = ("before any attack", *(f"after {place.step:,} updates" for place in table.places))
    [reference] = part.role("reference")
    others = [row for row in table.rows if row.label != reference]
    words = _WORDS[part.kind]
    return [
        Chapter(
            key="hazard",
            title="Hazard along the attack",
            blocks=(
                Text(text=_introduction(study, part, table)),
                Image(alt="Hazard by number of updates", file=picture),
                Table(
                    caption=f"{words.hazard}, in percent",
                    columns=("safeguard", *places, "minutes to build"),
                    rows=tuple(
                        (
                            Entry(row.label, note="control" if row.control else ""),
                            *(_entry(claim) for claim in row.hazard),
                            Entry(NOTHING if row.minutes is None else f"{row.minutes:.0f}"),
                        )
                        for row in table.rows
                    ),
                ),
                bullets(*_failures(part), *_settings(part)),
            ),
        ),
        Chapter(
            key="differences",
            title=f"Minus {reference}",
            blocks=(
                Table(
                    caption=f"Hazard minus that of {reference}, in points, paired by split and attack seed",
                    columns=("safeguard", *places),
                    rows=tuple(
                        (Entry(row.label), *(_entry(claim, signed=True) for claim in row.over_reference))
                        for row in others
                    ),
                ),
            ),
        ),
        Chapter(
            key="sets",
            title="Ability and controls",
            blocks=(
                Table(
                    caption=f"Before any attack → after {table.places[0].attack}, in percent",
                    columns=("safeguard", *words.sets.values()),
                    rows=tuple(
                        (Entry(row.label), *(_change(*row.sets[name]) for name in words.sets)) for row in table.rows
                    ),
                ),
            ),
        ),
    ]


def as_json(table: StepTable) -> dict[str, Any]:
    """The figures."""
    return asdict(table)


def _introduction(study: Study, part: Part, table: StepTable) -> str:
    attacks = ", ".join(dict.fromkeys(place.attack for place in table.places))
    tuned = f"{study.trials} trials of each on split {study.tuning_world}, under {', '.join(part.tuning_attacks)}"
    chosen = (
        f"The settings are the best of {tuned}"
        if study.trials
        else f"Settings were fixed on split {study.tuning_world}"
    )
    seeds = count(len(study.seeds), "attack seed")
    return (
        f"Splits {part.worlds}, one training of each safeguard on each, {seeds} ({attacks}). {chosen}. "
        "Entries are means over splits with a 95 % interval (Student-t over splits, of which there are few, so that the interval "
        f"is wide) and the range of trained models. Chance is {100 * table.chance:.0f}. {_WORDS[part.kind].control}"
    )


def _entry(claim: MethodClaim | None, *, signed: bool = False) -> Entry:
    if claim is None:
        return Entry(NOTHING)

    def points(value: float) -> str:
        value = value if signed else min(max(value, 0.0), 1.0)
        return written(100 * value, "+.0f" if signed else ".0f")

    notes = [] if claim.interval is None else [f"{points(claim.interval.low)} to {points(claim.interval.high)}"]
    return Entry(points(claim.mean), note="\n".join([*notes, f"models {points(claim.low)} to {points(claim.high)}"]))


def _change(before: MethodClaim | None, after: MethodClaim | None) -> Entry:
    ends = [NOTHING if claim is None else f"{100 * claim.mean:.0f}" for claim in (before, after)]
    return Entry(" → ".join(ends))


def _settings(part: Part) -> list[str]:
    tuned = [f"{method.label} {settings(method.settings)}" for method in part.methods if method.settings]
    return [f"Settings that the trials chose in place of the presets': {'; '.join(tuned)}."] if tuned else []


def _failures(part: Part) -> list[str]:
    return [
        f"{label} on split {world} could not be built: {reason}"
        for world, folder in part.campaigns.items()
        for label, reason in read_campaign(folder)[0].details.get("not_built", {}).items()
    ]
