"""The types of a campaign's figures: an attack on a model, an attack, a model, a comparison, the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from holdfast.stats.cells import CellSummary, Measured, Point, Scale
from holdfast.stats.recovery import Breach
from holdfast.stats.seeds import Estimate, Interval, Spread
from holdfast.stats.untouched import Start

Strength = Literal["breaks the reference", "weak", "unchecked"]
Outcome = Literal[
    "breached", "resisted", "undecided", "ability lost", "weak attack", "no control", "no result", "not estimable"
]
Verdict = Literal["breached", "not recovered", "undecided", "not estimable"]

COUNTED: tuple[Outcome, ...] = ("breached", "resisted", "undecided", "ability lost")
"""outcomes that make up the m of "resisted n of m\""""
ANCHOR_ROLES = ("undefended", "never-exposed", "destroyed")
"""roles that are the ends of the scale, or none: nothing is decided about them"""
ROLE_ORDER = ("undefended", "reference", "peer", "defended", "never-exposed", "destroyed")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One attack on one model, over its seeds."""

    model: str
    attack: str
    after: Estimate | None
    """hazard at the last step, over the seeds that finished"""
    best: Estimate | None
    """hazard at each seed's best milestone"""
    peak: Estimate | None
    """hazard at the milestone where its mean over seeds is greatest: one place to stop, the same for all seeds"""
    peak_step: int | None
    ability_at_peak: float | None
    """mean over seeds at that milestone; None where it was not measured there in every run"""
    gap: Spread | None
    """how far `peak` lies above the threshold (below: negative), over the seeds that finished; None where not estimable. Where
    it is below, and another milestone or the untouched model is not for certain: how far that one lies"""
    ability_before: float | None
    ability_after: float | None
    keeps_ability: bool | None
    recovery: float | None
    """of `peak`"""
    threshold: float | None
    """the hazard of `peak` that would be a breach"""
    breach: Breach | None
    """the earliest over seeds, diverged runs included"""
    outcome: Outcome
    finished: int
    diverged: int
    failed: int
    seen_in_training: bool


@dataclass(frozen=True, kw_only=True)
class AttackSummary:
    """One attack over all models."""

    name: str
    config: dict[str, Any]
    budget: int
    """the last step at which anything was measured"""
    strength: Strength
    controlled: bool
    """whether a test shows the attack to open what was planted for it (`Attack.control`)"""


@dataclass(frozen=True, kw_only=True)
class Over:
    """Hazard after attack over a set of attacks on one model."""

    attacks: int
    mean: float | None
    median: float | None
    stderr: float | None
    interval: Interval | None
    """over seed means; None with too few seeds"""
    worst: Pair | None
    worst_config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How many steps a model needs to learn new harmless facts."""

    steps: float
    reached: bool
    """False where some run did not get there within its budget: `steps` is then a lower bound"""
    seeds: int
    ratio: float | None
    """over the undefended model's; None without it or where that one did not get there"""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """One model over all its attacks."""

    label: str
    role: str
    before: Point | None
    ability_before: float | None
    untouched: tuple[Measured, ...]
    all: Over
    kept: Over
    """over the attacks that keep ability"""
    verdict: Verdict
    outcomes: dict[str, Outcome]
    """by attack"""
    learning: Learning | None
    blind: tuple[str, ...] = ()
    """attacks of families that neither its training met nor a search for attacks had gone through"""
    start: Start | None = None
    """before any attack, beside the threshold; None for the ends of the scale"""

    @property
    def breached_before(self) -> bool:
        """Whether the model is breached before any attack."""
        return self.start is not None and self.start.breached

    def under(self, *outcomes: Outcome) -> list[str]:
        """The attacks with one of these outcomes."""
        return [attack for attack, outcome in self.outcomes.items() if outcome in outcomes]

    @property
    def resisted(self) -> int:
        return len(self.under("resisted"))

    @property
    def counted(self) -> int:
        return len(self.under(*COUNTED))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean hazard of two models over the attacks both have results for."""

    model: str
    other: str
    attacks: int
    difference: float
    """model minus other"""
    stderr: float
    interval: Interval | None
    """95 %, seeds paired; None with too few of them"""
    verdict: Literal["safer", "less safe", "within noise", "too few seeds"]


@dataclass(frozen=True, kw_only=True)
class CampaignSummary:
    """Everything that the page says, before wording."""

    hazard: Scale
    ability: Scale
    models: tuple[ModelSummary, ...]
    attacks: tuple[AttackSummary, ...]
    pairs: tuple[Pair, ...]
    cells: tuple[CellSummary, ...]
    comparisons: tuple[Comparison, ...]
    floor: float | None
    """mean hazard after attack of the never-exposed model, where there is one"""
    seeds: tuple[int, ...]
    missing: int
    """planned cells that have not ended"""

    def pair(self, model: str, attack: str) -> Pair | None:
        return next((pair for pair in self.pairs if (pair.model, pair.attack) == (model, attack)), None)

    def attack(self, name: str) -> AttackSummary | None:
        return next((attack for attack in self.attacks if attack.name == name), None)
