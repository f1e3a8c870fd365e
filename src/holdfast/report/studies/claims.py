"""Claims about methods: over worlds, trained models and attack seeds, with intervals over worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from holdfast.core.records import read_campaign
from holdfast.report.blocks import Chapter, Text, bullets
from holdfast.report.studies.study import Part, Study
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import written
from holdfast.stats.cells import ABILITY_BOUND, NO_ATTACK, CellSummary
from holdfast.stats.figures import CampaignSummary
from holdfast.stats.method import MethodClaim, Nested, difference, method_claim
from holdfast.stats.milestones import best_milestone
from holdfast.stats.summary import summarise

Figure = Callable[[CampaignSummary, str, Sequence[int]], dict[int, float]]
"""(campaign, model, attack seeds) -> one value a seed"""
Trainings = Mapping[str, Mapping[int, str]]
"""Method -> safeguard seed -> the label of the model trained with it."""

_WORST = "worst hazard, ability kept, without the original model"


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One figure of the models, and differences between them."""

    figure: str
    claims: Mapping[str, MethodClaim]
    """method, or the never-exposed model, of which each world has one -> the claim"""
    differences: Mapping[str, MethodClaim]
    """ "tar minus random-mapping" and the like"""


def read_claims(
    study: Study, part: Part, trainings: Trainings, uses_base: Sequence[str], tested: str
) -> list[ClaimRow]:
    """Read every figure from the records of all worlds.

    Args:
        study: with the attack seeds.
        part: with the folders.
        trainings: the models of each method.
        uses_base: attacks that need the model before the safeguard.
        tested: the method that the others are compared with.
    """
    worlds = {world: summarise(*read_campaign(folder)) for world, folder in part.campaigns.items()}
    figures: dict[str, Figure] = {
        "hazard before any attack": _by_seed(lambda cells: next((c.before.value for c in cells if c.before), None)),
        "hazard after attack, mean of all attacks": _by_seed(
            lambda cells: _mean(c.last.value for c in cells if c.last)
        ),
        _WORST: _worst(leaving_out=uses_base),
        "worst hazard, ability kept, with the original model at hand": _worst(),
        "ability before any attack": _by_seed(lambda cells: _mean(cell.ability_before for cell in cells)),
        **({"related field before any attack": _untouched("related")} if _asked(worlds.values(), "related") else {}),
        "ability after attack, mean of all attacks": _by_seed(
            lambda cells: _mean(cell.ability_after for cell in cells)
        ),
    }

    def nested(labels: Mapping[int, str], figure: Figure) -> Nested:
        return {
            world: {seed: figure(summary, label, study.seeds) for seed, label in labels.items()}
            for world, summary in worlds.items()
        }

    rows = []
    for name, figure in figures.items():
        values = {method: nested(labels, figure) for method, labels in trainings.items()}
        clean = nested({0: "never-exposed"}, figure)
        rows.append(
            ClaimRow(
                figure=name,
                claims={method: method_claim(of) for method, of in {**values, "never-exposed": clean}.items()},
                differences={
                    f"{tested} minus {other}": difference(values[tested], values[other])
                    for other in trainings
                    if other != tested
                },
            )
        )
    return rows


def _by_seed(value: Callable[[Sequence[CellSummary]], float | None]) -> Figure:
    """Make a figure per attack seed; the single run of an attack without randomness serves every seed."""

    def figure(summary: CampaignSummary, label: str, seeds: Sequence[int]) -> dict[int, float]:
        cells = _cells(summary, label)
        values = {seed: value([cell for cell in cells if cell.seed == seed or not cell.draws]) for seed in seeds}
        return {seed: known for seed, known in values.items() if known is not None}

    return figure


def _asked(summaries: Iterable[CampaignSummary], evaluation: str) -> bool:
    """Whether the untouched models of every campaign were asked."""
    return all(
        any(one.evaluation == evaluation for model in summary.models for one in model.untouched)
        for summary in summaries
    )


def _untouched(evaluation: str) -> Figure:
    """Make a figure of the models before any attack, which is every seed's."""

    def figure(summary: CampaignSummary, label: str, seeds: Sequence[int]) -> dict[int, float]:
        model = next((model for model in summary.models if model.label == label), None)
        found = [one.value for one in model.untouched if one.evaluation == evaluation] if model else []
        return dict.fromkeys(seeds, found[0]) if found else {}

    return figure


def _worst(leaving_out: Sequence[str] = ()) -> Figure:
    """Hazard at the attack and milestone with the greatest mean over seeds, among those that keep ability.

    The greatest value of each seed separately would be greater by luck alone.
    """

    def figure(summary: CampaignSummary, label: str, seeds: Sequence[int]) -> dict[int, float]:
        attacks: dict[str, list[CellSummary]] = {}
        for cell in _cells(summary, label):
            if cell.attack not in (*leaving_out, NO_ATTACK):
                attacks.setdefault(cell.attack, []).append(cell)
        milestones = (best_milestone(cells, summary.hazard, loss=ABILITY_BOUND) for cells in attacks.values())
        kept = [best for best in milestones if best is not None and best.kept]
        if not kept:
            return {}
        worst = max(kept, key=lambda best: summary.hazard.sign * best.hazard)
        # One run of an attack that draws nothing is every seed's.
        return {seed: worst.by_seed.get(seed, worst.hazard) for seed in seeds}

    return figure


def _cells(summary: CampaignSummary, label: str) -> list[CellSummary]:
    return [cell for cell in summary.cells if cell.model == label and cell.counts]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def chapters(study: Study, part: Part, rows: Sequence[ClaimRow], trainings: Trainings) -> list[Chapter]:
    """The figures, and the differences between methods."""
    worst = next(row for row in rows if row.figure == _WORST)
    spreads = "; ".join(f"{name} {_spread(claim)}" for name, claim in worst.claims.items())
    return [
        Chapter(
            key="claims",
            title="Methods",
            blocks=(
                Text(text=_introduction(study, part, max(map(len, trainings.values())))),
                _table("Every figure, in percent", rows, lambda row: row.claims, signed=False),
                bullets(f"Spread of the worst hazard without the original model, in points: {spreads}."),
            ),
        ),
        Chapter(
            key="differences",
            title="Differences",
            blocks=(
                _table(
                    "Differences in points, paired by world, safeguard seed and attack seed",
                    rows,
                    lambda row: row.differences,
                    signed=True,
                ),
            ),
        ),
    ]


def _introduction(study: Study, part: Part, trainings: int) -> str:
    seeds = "one seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    trained = "once" if trainings == 1 else f"{trainings} times"
    return (
        f"Suite {part.suite} ({part.attacks} attacks, {seeds} each) on worlds {part.worlds}, each safeguard trained {trained} "
        "on each. Every entry is the mean over worlds, its 95 % interval (Student-t over worlds, of which there are few, so that "
        "the interval is wide), and the range of trained models. Ability kept means a fall of no more than "
        f"{100 * ABILITY_BOUND:.0f} points. The worst hazard is the greatest at any milestone of any attack, which by luck "
        "alone lies some points above the truth, for the never-exposed model as for the others."
    )


def _table(
    caption: str, rows: Sequence[ClaimRow], claims: Callable[[ClaimRow], Mapping[str, MethodClaim]], *, signed: bool
) -> Table:
    return Table(
        caption=caption,
        columns=("figure", *claims(rows[0])),
        rows=tuple(
            (Entry(row.figure), *(_claim(claim, signed=signed) for claim in claims(row).values())) for row in rows
        ),
    )


def _claim(claim: MethodClaim, *, signed: bool) -> Entry:
    def points(value: float) -> str:
        value = value if signed else min(max(value, 0.0), 1.0)
        return written(100 * value, "+.0f" if signed else ".0f")

    between = "too few worlds"
    if claim.interval is not None:
        between = f"{points(claim.interval.low)} to {points(claim.interval.high)}"
    return Entry(points(claim.mean), note=f"{between}\nmodels {points(claim.low)} to {points(claim.high)}")


def _spread(claim: MethodClaim) -> str:
    trained = (
        f"{100 * claim.between_models:.0f} between trainings" if claim.models > claim.worlds else "trained once a world"
    )
    return f"{trained}, {100 * claim.between_attacks:.0f} between attack seeds"


def as_json(rows: Sequence[ClaimRow]) -> list[dict[str, Any]]:
    """The figures, a row a figure."""
    return [asdict(row) for row in rows]
