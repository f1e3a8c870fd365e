"""How long an audit will take and what it will cost: the first updates of every attack and every evaluation, timed once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import Campaign, Cell, Model, evaluations_of
from holdfast.core.domain import Domain
from holdfast.core.options import Options
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.session import base_loader

TIMED = 4
"""updates that are timed of each attack: the first holds what it prepares, the others are its pace"""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What one attack takes on one model."""

    first: float
    """seconds of loading, preparing and the first update"""
    update: float
    """seconds of every other update"""
    tokens: float
    """that it reads in an update"""
    flops: float
    """of an update"""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an audit takes in all."""

    cells: int
    seconds: float
    """of work on one process; divide by the processes"""
    tokens: float
    flops: float
    evaluating: float
    """seconds of it that are measuring"""


def estimate(
    campaign: Campaign, model: Model, options: Options, on_step: Callable[[int, int], None] = lambda done, total: None
) -> Estimate:
    """Time the first updates of every attack and every evaluation on `model`, and add up over the campaign's cells.

    An update is taken to cost the same on every model of the campaign, and every update after the first the same.
    """
    domain = Domain.open(campaign.domain)
    paces = {}
    for done, (name, attack) in enumerate(campaign.attacks, 1):
        paces[name] = _pace(attack, domain, model, options)
        on_step(done, len(campaign.attacks))
    whole, sample, hazard, probes = _asking(domain, model, options)
    cells = list(campaign.cells())
    working = evaluating = tokens = flops = 0.0
    for cell in cells:
        evaluating += whole + (probes if cell.attack is None else 0.0)
        if cell.attack is None:
            continue
        pace, updates = paces[cell.attack_name], cell.attack.max_steps
        working += pace.first + (updates - 1) * pace.update
        tokens, flops = tokens + updates * pace.tokens, flops + updates * pace.flops
        evaluating += _along(cell, sample, hazard)
    return Estimate(cells=len(cells), seconds=working + evaluating, tokens=tokens, flops=flops, evaluating=evaluating)


def _along(cell: Cell, sample: float, hazard: float) -> float:
    """Seconds of measuring at the milestones between the first and the last."""
    return max(len(cell.milestones) - 2, 0) * sample + len(cell.hazard_milestones) * hazard


def _pace(attack: Attack, domain: Domain, model: Model, options: Options) -> Pace:
    from holdfast.engine.costs import Meter
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run, seed_everything
    from holdfast.engine.walk import drive

    started = time.monotonic()
    seed_everything(0)
    checkpoint = Checkpoint(model.path)
    loaded, tokenizer = checkpoint.load_both(options.device, options.dtype, options.trust_remote_code)
    attack.prepare(loaded)
    run = Run(0, base_loader(checkpoint, options))
    data = Data.attacker(domain, tokenizer, options.device)
    meter = Meter(data)
    updates = min(TIMED, attack.max_steps)
    ends = []
    for _ in islice(drive(meter.walk(attack.steps(loaded, data, run)), loaded, run), updates):
        ends.append(time.monotonic())
    pace = (ends[-1] - ends[0]) / (updates - 1) if updates > 1 else 0.0
    return Pace(first=ends[0] - started, update=pace, tokens=meter.tokens / updates, flops=meter.flops / updates)


def _asking(domain: Domain, model: Model, options: Options) -> tuple[float, float, float, float]:
    """Seconds of everything in full, of what is asked at a milestone, of hazard alone, and of what only an untouched model is
    asked.
    """
    loaded, tokenizer = Checkpoint(model.path).load_both(options.device, options.dtype, options.trust_remote_code)
    along, once = evaluations_of(domain)

    def seconds(evaluation: Any) -> float:
        probe = evaluation.prepare(tokenizer, domain)
        started = time.monotonic()
        probe(loaded)
        return time.monotonic() - started

    whole = {name: seconds(held) for name, held in along}
    between = {name: held.at_milestone(domain) for name, held in along}
    sample = {
        name: whole[name] if held == dict(along)[name] else seconds(held)
        for name, held in between.items()
        if held is not None
    }
    hazard = sum(sample[name] for name, held in along if name in sample and held.measures(domain) == "hazard")
    return sum(whole.values()), sum(sample.values()), hazard, sum(seconds(held) for _, held in once)
