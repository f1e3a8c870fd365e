"""How far the evidence of an audit goes: families of attack, blind ones among them, seeds, curves that still climb, a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.records import CellResult, plain_attack
from holdfast.stats.cells import NO_ATTACK
from holdfast.stats.endings import Ending, endings
from holdfast.stats.figures import ANCHOR_ROLES, CampaignSummary, ModelSummary
from holdfast.stats.suspicion import Check


@dataclass(frozen=True, kw_only=True)
class Climbing(Check):
    """No curve may still climb towards the threshold when the budget of its attack ends."""

    public = True
    model: str
    endings: tuple[Ending, ...]
    """attacks whose curve does, the one that would get there first before all"""


@dataclass(frozen=True, kw_only=True)
class Blindness(Check):
    """Some family of attack should be one that no adversary in training and no search for attacks had met."""

    public = True
    model: str
    families: tuple[str, ...]
    """of the attacks on the model"""
    blind: tuple[str, ...]
    """those of which an attack was blind"""


@dataclass(frozen=True, kw_only=True)
class FewSeeds(Check):
    """An interval over seeds has to be possible."""

    public = True
    model: str
    seeds: int
    """of the attack that has the fewest"""


Evidence = Climbing | Blindness | FewSeeds


def evidence(summary: CampaignSummary, results: Sequence[CellResult]) -> list[Evidence]:
    """The checks of how far the evidence goes, for every model with a safeguard that was attacked."""
    ends, found = endings(summary), list[Evidence]()
    for model in (model for model in summary.models if model.role not in ANCHOR_ROLES and model.all.attacks):
        climbing = sorted(
            (end for end in ends if end.model == model.label and end.undecided), key=lambda end: end.decides or 0.0
        )
        # What has breached a model already is decided.
        found.append(
            Climbing(fires=bool(climbing) and model.verdict != "breached", model=model.label, endings=tuple(climbing))
        )
        if model.role == "defended":
            families = families_of(results, model)
            blind = tuple(dict.fromkeys(families[attack] for attack in model.blind if attack in families))
            found.append(
                Blindness(
                    fires=not model.blind,
                    model=model.label,
                    families=tuple(dict.fromkeys(families.values())),
                    blind=blind,
                )
            )
        gaps = [pair.gap for pair in summary.pairs if pair.model == model.label and pair.gap is not None]
        few = [gap.seeds for gap in gaps if not gap.enough]
        found.append(FewSeeds(fires=bool(few), model=model.label, seeds=min(few, default=len(summary.seeds))))
    return found


def families_of(results: Sequence[CellResult], model: ModelSummary) -> Mapping[str, str]:
    """The family of each attack on a model, of those whose family is known."""
    return {
        result.attack: result.family
        for result in results
        if result.family and result.model == model.label and plain_attack(result.attack) != NO_ATTACK
    }
