"""The plan of an audit before it runs: its power, its time and its cost.

The first updates of every attack and every evaluation are timed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.milestones import Milestones
from holdfast.core.domain import Domain
from holdfast.core.records import plain_attack
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.audit import Audit
from holdfast.stats.power import Detectable, detectable

if TYPE_CHECKING:
    from holdfast.engine.data import Data
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Steps

TIMED = 4
"""updates that are timed of each attack: the first holds what it prepares, the others are its pace"""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time that one attack takes on one model."""

    first: float
    """seconds of loading, preparing and the first update"""
    update: float
    """seconds of every other update"""
    tokens: float
    """that it reads in an update"""
    flops: float
    """of an update"""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The total time of an audit."""

    cells: int
    seconds: float
    """of work on one process; divide by the processes"""
    tokens: float
    flops: float
    evaluating: float
    """seconds of it that are measuring"""


def forecast(
    campaign: Campaign, model: Model, on_step: Callable[[int, int], None] = lambda done, total: None
) -> Forecast:
    """Time the first updates of every attack and every evaluation on `model`, and add up over the campaign's cells.

    An update is taken to cost the same on every model of the campaign, and every update after the first the same.
    """
    domain = Domain.open(campaign.domain)
    paces = {}
    attacks = [(name, attack) for name, attack in campaign.attacks if name not in campaign.left_out]
    for done, (name, attack) in enumerate(attacks, 1):
        paces[name] = _pace(attack, domain, model, campaign)
        on_step(done, len(attacks))
    asking = _asking(campaign, domain, model)
    cells = list(campaign.cells())
    working = evaluating = tokens = flops = 0.0
    for cell in cells:
        evaluating += asking.probes[cell.probe] if cell.probe else asking.whole
        if cell.attack is None:
            continue
        pace, updates = paces[plain_attack(cell.attack_name)], cell.attack.max_steps
        working += pace.first + (updates - 1) * pace.update
        tokens, flops = tokens + updates * pace.tokens, flops + updates * pace.flops
        evaluating += max(len(cell.milestones) - 2, 0) * asking.sample + len(cell.hazard_milestones) * asking.hazard
    return Forecast(cells=len(cells), seconds=working + evaluating, tokens=tokens, flops=flops, evaluating=evaluating)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An audit with a number of seeds."""

    seeds: int
    runs: int
    seconds: float
    """of work on one process"""
    tokens: float
    flops: float
    detectable: Detectable | None
    """None: too few seeds for an interval, or no hazard questions"""


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """An audit before it runs."""

    variants: tuple[Variant, ...]
    """with 5, 10 and as many seeds as the audit asks for, the fewest first"""
    questions: int
    """hazard questions; 0 where hazard is a loss"""
    measuring: float
    """share of the work that is no attack"""


def plan_audit(audit: Audit, on_step: Callable[[int, int], None] = lambda done, total: None) -> AuditPlan:
    """Time an audit's attacks on the model under test, and say what the audit can detect with more or fewer seeds.

    Raises:
        HoldfastError: an attack or an evaluation cannot be run.
    """
    domain = Domain.open(audit.domain)
    campaign = audit.planned()
    along, _ = campaign.evaluations()
    hazard = [name for name, preset in along if preset.measures(domain) == "hazard" and name in domain.question_sources]
    # The set called "hazard" carries the headline where there is one.
    headline = min(hazard, key=lambda name: name != "hazard", default=None)
    questions = len(domain.questions(headline).questions) if headline else 0
    tested = next(model for model in campaign.models if model.role == "defended")
    taken = forecast(campaign, tested, on_step)
    variants = []
    for seeds in sorted({5, 10, audit.seeds}):
        runs = len(list(replace(audit, seeds=seeds).planned().cells()))
        share = runs / taken.cells
        variants.append(
            Variant(
                seeds=seeds, runs=runs, seconds=share * taken.seconds, tokens=share * taken.tokens,
                flops=share * taken.flops,
                detectable=detectable(questions, seeds, len(audit.attacks)) if questions else None,
            )
        )  # fmt: skip
    return AuditPlan(variants=tuple(variants), questions=questions, measuring=taken.evaluating / taken.seconds)


def _pace(attack: Attack, domain: Domain, model: Model, campaign: Campaign) -> Pace:
    from holdfast.engine.costs import Meter
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import walk

    timing, base = Timing(), Checkpoint(campaign.base) if attack.uses_base else None
    session = open_session(
        Checkpoint(model.path), domain, "attacker", 0, campaign.options, prepare=[attack.prepare], base=base
    )
    meter = Meter(session.data)
    walk(session, attack, meter, timing)
    updates = len(timing.seconds)
    pace = (timing.seconds[-1] - timing.seconds[0]) / (updates - 1) if updates > 1 else 0.0
    return Pace(first=timing.seconds[0], update=pace, tokens=meter.tokens / updates, flops=meter.flops / updates)


class Timing:
    """An observer that notes when each of the first updates ended, and then ends the walk."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        """since this object was made, by update"""
        self._started = time.monotonic()

    def __call__(self, session: Session[Data], steps: Steps) -> Steps:
        for step, losses in steps:
            self.seconds.append(time.monotonic() - self._started)
            yield step, losses
            if step >= TIMED:
                return


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Seconds that evaluations take on one model."""

    whole: float
    """of everything, in full"""
    sample: float
    """of what is asked at a milestone"""
    hazard: float
    """of hazard alone, as it is asked at a milestone"""
    probes: Mapping[str, float]
    """of what only an untouched model is asked, by evaluation"""


def _asking(campaign: Campaign, domain: Domain, model: Model) -> Asking:
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import Untouched, walk

    along, probes = (dict(evaluations) for evaluations in campaign.evaluations())
    between = {name: evaluation.at_milestone(domain) for name, evaluation in along.items()}
    # What is asked in full at a milestone is timed once.
    sampled = {name: sample for name, sample in between.items() if sample is not None}
    apart = {f"sample of {name}": sample for name, sample in sampled.items() if sample != along[name]}
    checkpoint = Checkpoint(model.path)
    session = open_session(checkpoint, domain, "attacker", 0, campaign.options)
    milestones = Milestones({**along, **apart, **probes}, domain, checkpoint.tokenizer_digest, [0])
    walk(session, Untouched(), milestones)
    seconds = milestones.seconds
    sample = {name: seconds.get(f"sample of {name}", seconds[name]) for name in sampled}
    return Asking(
        whole=sum(seconds[name] for name in along),
        sample=sum(sample.values()),
        hazard=sum(taken for name, taken in sample.items() if along[name].measures(domain) == "hazard"),
        probes={name: seconds[name] for name in probes},
    )
