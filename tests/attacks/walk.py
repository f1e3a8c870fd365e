"""Walking an attack as a campaign does: seeded, prepared, step by step."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.attacks.base import Attack
from holdfast.core.domain import Domain
from holdfast.core.presets import describe
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from tests.conftest import SmallTestbed


def distinct(presets: Mapping[str, Any]) -> set[str]:
    """The first preset of each kind: a number makes no other code run, unless it is zero."""
    kinds: dict[str, str] = {}
    for name, preset in presets.items():
        kinds.setdefault(json.dumps(_without_numbers(describe(preset))), name)
    return set(kinds.values())


def _without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_numbers(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numbers(held) for held in value]
    return value != 0 if isinstance(value, int | float) else value


@cache
def loaded(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Domain]:
    """The undefended model of a testbed, to be copied and not to be changed."""
    return *Checkpoint(str(path / "model")).load_both(), Domain.open(path)


def fresh(testbed: SmallTestbed) -> tuple[PreTrainedModel, Data]:
    """The undefended model, not yet tampered with, and the attacker's data."""
    model, tokenizer, domain = loaded(testbed.folder)
    return copy.deepcopy(model), Data.attacker(domain, tokenizer)


def shortened(attack: Attack, steps: int = 4, **changes: Any) -> Any:
    """The attack over a few small steps, with a warmup that leaves some of them at the whole rate."""
    for name, most in (("warmup_steps", 2), ("ascent_steps", 1), ("batch_size", 8)):
        if hasattr(attack, name):
            changes.setdefault(name, min(getattr(attack, name), most))
    return replace(attack, max_steps=steps, **changes)


def weights(model: PreTrainedModel) -> torch.Tensor:
    """All weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def walk(
    attack: Attack,
    testbed: SmallTestbed,
    seed: int = 3,
    at_yield: Callable[[PreTrainedModel], None] = lambda model: None,
) -> list[torch.Tensor]:
    """The weights after every step."""
    seed_everything(seed)
    model, data = fresh(testbed)
    attack.prepare(model)
    run = Run(seed, testbed.never_exposed.load)
    path = []
    for _ in drive(attack.steps(model, data, run), run):
        path.append(weights(model))
        at_yield(model)
    return path


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Bit for bit."""
    return len(left) == len(right) and all(map(torch.equal, left, right))
