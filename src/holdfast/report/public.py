"""The records of a public report: each field is allowed by name, and every other field is absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.core.records import FOREIGN, CampaignPlan, CellResult, plain_attack
from holdfast.report.words.names import Names
from holdfast.report.words.numbers import count, listed
from holdfast.stats.cells import NO_ATTACK

MODEL_DETAILS = ("digest", "stages", "seconds", "tokens", "flops", "seed", "base")
"""what a public report says of a model; its path is not among them"""


def publish(plan: CampaignPlan, results: Sequence[CellResult]) -> tuple[CampaignPlan, list[CellResult], Names]:
    """The records with a stand-in for every attack, numbered within its family, and without settings, commands and paths.

    Returns:
        The plan, the records, and the family that the page writes for each stand-in.
    """
    families = dict.fromkeys((plain_attack(attack) for attack in plan.attacks), "an attack")
    families |= {plain_attack(result.attack): result.family or "an attack" for result in results}
    families.pop(NO_ATTACK, None)
    numbers: Counter[str] = Counter()
    stand_ins = {NO_ATTACK: NO_ATTACK}
    for attack, family in families.items():
        numbers[family] += 1
        stand_ins[attack] = f"{family} #{numbers[family]}"
        stand_ins[attack + FOREIGN] = stand_ins[attack] + FOREIGN
    names = Names(
        families={
            stand_in: families[plain_attack(attack)] + attack.removeprefix(plain_attack(attack))
            for attack, stand_in in stand_ins.items()
            if attack != NO_ATTACK
        },
        stand_ins=stand_ins,
    )
    return _plan(plan, stand_ins), [_result(result, stand_ins) for result in results], names


def model_details(plan: CampaignPlan, label: str) -> Mapping[str, Any]:
    """The plan's entries for one model: `details["models"][label]`, or `details[label]`; empty without."""
    models = plan.details.get("models")
    details = models.get(label) if isinstance(models, dict) else plan.details.get(label)
    return details if isinstance(details, dict) else {}


def _plan(plan: CampaignPlan, stand_ins: Mapping[str, str]) -> CampaignPlan:
    """The plan without free text: the title and the suite's name may name an attack, so the title is made anew."""
    named = any(attack in plan.suite for attack in (*stand_ins, *plan.attacks) if attack != NO_ATTACK)
    tested = [label for label, role in plan.models.items() if role == "defended"] or list(plan.models)
    details = {
        "models": {label: _allowed(model_details(plan, label), MODEL_DETAILS) for label in plan.models},
        "uses_base": [stand_ins[attack] for attack in plan.details.get("uses_base", ()) if attack in stand_ins],
        "left_out": [stand_ins[attack] for attack in plan.details.get("left_out", ()) if attack in stand_ins],
        "without_control": [
            stand_ins[attack] for attack in plan.details.get("without_control", ()) if attack in stand_ins
        ],
        **_allowed(plan.details, ("protocol", "base", "compared", "sibling")),
    }
    return CampaignPlan(
        title=f"Audit of {listed(tested)}" if tested else "Audit",
        domain=plan.domain,
        suite=count(sum(plain_attack(name) == name != NO_ATTACK for name in stand_ins), "attack")
        if named
        else plan.suite,
        models=plan.models,
        cells=plan.cells,
        attacks=[stand_ins[attack] for attack in plan.attacks if attack in stand_ins],
        seeds=plan.seeds,
        details=details,
    )


def _result(result: CellResult, stand_ins: Mapping[str, str]) -> CellResult:
    return CellResult(
        cell=result.cell,
        model=result.model,
        model_digest=result.model_digest,
        attack=stand_ins[result.attack],
        attack_config={},
        seed=result.seed,
        status=result.status,
        milestones=result.milestones,
        first_loss=result.first_loss,
        last_loss=result.last_loss,
        costs=result.costs,
        tokens=result.tokens,
        flops=result.flops,
        family=result.family,
        draws=result.draws,
        seconds=result.seconds,
        identity=_allowed(result.identity, ("data", "evaluations")),
        environment=result.environment,
        records=result.records,
    )


def _allowed(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}
