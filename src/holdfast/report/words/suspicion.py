"""The sentences of the attack checks, one a check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.core.records import CellResult
from holdfast.report.words import evidence, honesty
from holdfast.report.words.names import Names
from holdfast.report.words.numbers import amount, bare, number
from holdfast.stats.cells import Scale
from holdfast.stats.evidence import Blindness, Climbing, FewSeeds
from holdfast.stats.honesty import EqualWeights, Masked, NoResult, OtherBase, OtherTokenizer, Reason
from holdfast.stats.suspicion import (
    EXPLODING,
    Abilities,
    Control,
    Gradients,
    Losses,
    Shape,
    Suspicion,
    Sweep,
    Transferred,
    Updates,
)

_SHAPES: dict[Shape, str] = {
    "still rising": "The highest rate is the worst: a higher one may do more.",
    "still falling": "The lowest rate is the worst: a lower one may do more.",
    "one rate alone": "One rate stands out alone: an artefact, or a narrow opening, until its neighbours confirm it.",
    "closed": "The worst rate lies inside the sweep.",
}
_MOST = 6
"""runs that a sentence names"""


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One sentence, and whether the sentence weakens the report."""

    text: str
    fires: bool = False


def remark(check: Reason, hazard: Scale, names: Names = Names()) -> Remark:  # noqa: B008 - frozen
    """One check with its sentence."""
    if isinstance(check, Climbing | Blindness | FewSeeds):
        return Remark(text=evidence.sentence(check, hazard, names), fires=check.fires)
    if isinstance(check, NoResult | OtherTokenizer | EqualWeights | OtherBase | Masked):
        return Remark(text=honesty.sentence(check, names), fires=check.fires)
    return Remark(text=_sentence(check, hazard), fires=check.fires)


def _sentence(suspicion: Suspicion, hazard: Scale) -> str:
    match suspicion:
        case Losses(rose=()):
            return f"The attacker's own loss fell in all {_runs(suspicion.runs)} that lower one."
        case Losses():
            return (
                f"The attacker's own loss never fell in {len(suspicion.rose)} of {_runs(suspicion.runs)}: "
                f"{_cells(suspicion.rose)}. Such an attack is broken."
            )
        case Gradients():
            return _gradients(suspicion)
        case Updates():
            return _updates(suspicion)
        case Control(weak=(), strong=()):
            return "No attack was tried on a shallow control, so none is shown to work."
        case Control(weak=()):
            return "Every attack breaks the shallow control."
        case Control():
            share = f"{len(suspicion.weak)} of {len(suspicion.weak) + len(suspicion.strong)} attacks"
            return f"{share} do not break the shallow control: {', '.join(suspicion.weak)}."
        case Abilities(lost=()):
            return "Ability was kept wherever a safeguarded model was attacked."
        case Abilities():
            lost = _few([f"{pair.model} under {pair.attack}" for pair in suspicion.lost])
            return (
                f"Ability was lost in {len(suspicion.lost)} of {suspicion.pairs} pairs of model and attack ({lost}): low hazard "
                "there may be ruin."
            )
        case Sweep():
            rates = ", ".join(f"{rate:g}" for rate in suspicion.rates)
            hazards = ", ".join(bare(value, hazard) for value in suspicion.hazards)
            unit = "nats" if hazard.metric == "nats" else "%"
            return f"{suspicion.model}, over the rates {rates}: hazard {hazards} {unit}. {_SHAPES[suspicion.shape]}"
        case Transferred():
            reached = amount(suspicion.hazard, hazard)
            more = ": more than any attack on its own gradients, which points to masked gradients"
            return (
                f"An update computed on the base model and added to {suspicion.model} brings hazard to {reached}"
                f"{more if suspicion.fires else ''}."
            )


def _gradients(check: Gradients) -> str:
    signs = []
    if check.vanished:
        signs.append(f"gradients were zero in {_cells(check.vanished)}")
    if check.exploding:
        signs.append(f"gradients grew more than {EXPLODING:,.0f} times in {_cells(check.exploding)}")
    if check.stopped:
        signs.append(f"the run became non-finite in {_cells(check.stopped)}")
    if signs:
        text = "; ".join(signs)
        return f"{text[:1].upper()}{text[1:]}: these attacks may fail for a reason of their own."
    return (
        f"Gradients were finite and not zero in all {_runs(check.runs)} that take some, with norms from "
        f"{number(check.least)} to {number(check.greatest)}, and never grew more than {number(check.growth)} times."
    )


def _updates(check: Updates) -> str:
    signs = []
    if check.idle:
        signs.append(f"hardly moved the weights in {_cells(check.idle)}")
    if check.replaced:
        signs.append(f"moved them by more than their own length in {_cells(check.replaced)}")
    if check.stuck:
        signs.append(f"lost most of its updates in rounding in {_cells(check.stuck)}")
    if signs:
        return f"The attack {' and '.join(signs)}."
    return f"Updates were between {number(100 * check.least)} and {number(100 * check.greatest)} % of the weights' own norm."


def _runs(count: int) -> str:
    return "run" if count == 1 else f"{count} runs"


def _cells(cells: Iterable[CellResult]) -> str:
    seeds: dict[str, list[int]] = {}
    for cell in cells:
        seeds.setdefault(f"{cell.model} under {cell.attack}", []).append(cell.seed)
    return _few(
        [f"{name} ({'seed' if len(of) == 1 else 'seeds'} {', '.join(map(str, of))})" for name, of in seeds.items()]
    )


def _few(names: list[str]) -> str:
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")
