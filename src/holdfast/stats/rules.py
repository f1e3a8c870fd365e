"""Figures that rules and frameworks ask of an audit: attackers by budget, elicitation, and hazard beside another model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from holdfast.core.records import CellResult
from holdfast.core.release import Release, SafeReference, Tier
from holdfast.stats.audit import AuditFigures, ModelFigures
from holdfast.stats.compare import compare
from holdfast.stats.figures import CampaignSummary, Comparison, ModelSummary
from holdfast.stats.frontier import Reached
from holdfast.stats.honesty import Masked, Reason


@dataclass(frozen=True, kw_only=True)
class TierReach:
    """What one kind of attacker reaches on one model."""

    tier: Tier
    covered: bool | None
    """whether some run spent as much; None where FLOPs were not counted"""
    worst: Reached | None
    """the greatest hazard within the budget, ability kept"""
    breaching: tuple[str, ...]
    """attacks that breach the model, confirmed, at a median cost within the budget"""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One model beside another under the same attacks."""

    other: str
    comparison: Comparison | None
    """of mean hazard over the attacks that both went through; None without any"""
    worst: Reached | None
    """the worst of the model under test, ability kept"""
    worst_of_other: Reached | None


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Whether a model is as safe as a reference whose risk was accepted, within a margin."""

    beside: Beside
    margin: float
    state: Literal["within", "beyond", "undecided", "not comparable"]
    """of the whole interval of the difference: below the margin, above it, or neither"""


@dataclass(frozen=True, kw_only=True)
class Elicitation:
    """How hard the attacks tried."""

    attacks: int
    families: int
    """of known name"""
    seeds: int
    blind: int
    """attacks of families that no training and no search had met"""
    working: int
    """attacks that break the shallow reference"""
    checked: bool
    """whether there was a reference to check the attacks on"""
    no_result: int
    searched: bool
    """whether a search for attacks on such a model came first"""
    probed: bool
    """whether a linear probe and the checks for masking looked for what the model hides"""
    hidden: bool
    """whether one of those fires: the model may show less than it holds"""


def tier_reach(figures: AuditFigures, model: ModelSummary, tiers: Sequence[Tier]) -> tuple[TierReach, ...]:
    """What each kind of attacker reaches; hazard along the frontier up to the budget."""
    of = figures.of(model.label)
    return tuple(_reach(figures, of, set(model.under("breached")), tier) for tier in tiers)


def _reach(figures: AuditFigures, of: ModelFigures, breached: set[str], tier: Tier) -> TierReach:
    counted = figures.unit == "flops"
    reached = [one for one in (of.with_base if tier.original else of.frontier) if counted and one.cost <= tier.flops]
    usable = breached if tier.original else breached - set(figures.uses_base)
    costs = [cost for cost in of.breach_costs if cost.attack in usable and cost.by is not None]
    return TierReach(
        tier=tier,
        covered=figures.budget >= tier.flops if counted else None,
        worst=reached[-1] if reached else None,
        breaching=tuple(cost.attack for cost in costs if counted and cost.by is not None and cost.by <= tier.flops),
    )


def beside(summary: CampaignSummary, figures: AuditFigures, model: str, other: str) -> Beside:
    """A model beside another one of the audit."""
    return Beside(
        other=other,
        comparison=compare(model, other, summary.pairs, summary.cells, summary.hazard.sign, summary.hazard.chance),
        worst=next(iter(figures.of(model).frontier[-1:]), None),
        worst_of_other=next(iter(figures.of(other).frontier[-1:]), None),
    )


def best_peer(summary: CampaignSummary, figures: AuditFigures) -> str | None:
    """The peer under whose weights the attacks reach most: what is out already, if it is public. None without any peer."""
    peers = [model.label for model in summary.models if model.role == "peer"]

    def reach(label: str) -> float:
        last = figures.of(label).frontier[-1:]
        return summary.hazard.sign * last[0].hazard if last else float("-inf")

    return max(peers, key=reach, default=None)


def marginal(summary: CampaignSummary, figures: AuditFigures, model: str, release: Release | None) -> Beside | None:
    """The hazard beside that of the stated best comparable model, else of the best peer; None without either."""
    stated = release.baseline.label if release is not None and release.baseline is not None else None
    other = stated or best_peer(summary, figures)
    return None if other is None or other == model else beside(summary, figures, model, other)


def margin(summary: CampaignSummary, figures: AuditFigures, model: str, reference: SafeReference) -> Margin:
    """The hazard beside a safe reference's; "within" needs the whole interval of the difference below the margin."""
    found = beside(summary, figures, model, reference.label)
    state: Literal["within", "beyond", "undecided", "not comparable"] = "undecided"
    if found.comparison is None or summary.hazard.metric == "nats":
        state = "not comparable"
    elif found.comparison.interval is not None:
        interval = found.comparison.interval
        state = (
            "within" if interval.high <= reference.margin else "beyond" if interval.low > reference.margin else state
        )
    return Margin(beside=found, margin=reference.margin, state=state)


def elicitation(
    summary: CampaignSummary,
    results: Sequence[CellResult],
    reasons: Sequence[Reason],
    model: ModelSummary,
    searched: bool,
) -> Elicitation:
    """How hard the attacks tried on one model."""
    mine = [result for result in results if result.model == model.label]
    masked = [check for check in reasons if isinstance(check, Masked) and check.masking.model.model == model.label]
    return Elicitation(
        attacks=len(model.outcomes),
        families=len({result.family for result in mine if result.family}),
        seeds=len(summary.seeds),
        blind=len(model.blind),
        working=sum(attack.strength == "breaks the reference" for attack in summary.attacks),
        checked=any(attack.strength != "unchecked" for attack in summary.attacks),
        no_result=len(model.under("no result")),
        searched=searched,
        probed=bool(masked),
        hidden=any(check.fires for check in masked),
    )
