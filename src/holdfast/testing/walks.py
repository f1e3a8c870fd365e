"""Walking a plug-in as a campaign does: seeded, prepared, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from holdfast.attacks.base import Attack
from holdfast.core.domain import Domain
from holdfast.core.files import digest
from holdfast.core.presets import describe
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.safeguards.base import Safeguard
from holdfast.testing.bench import Bench

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEED = 3
"""of the walks that are compared"""


def require(kept: bool, sentence: str) -> None:
    """Raises:
    AssertionError: a rule is not kept.
    """
    if not kept:
        raise AssertionError(sentence)


def weights(model: PreTrainedModel) -> torch.Tensor:
    """All weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Bit for bit, which a process promises to itself over batches of the same shape."""
    return len(left) == len(right) and all(map(torch.equal, left, right))


@cache
def loaded(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Domain]:
    """The model of a bench, to be copied and not to be changed."""
    return *Checkpoint(str(folder / "model")).load_both(), Domain.open(folder)


def fresh(bench: Bench) -> tuple[PreTrainedModel, Data]:
    """The model, not yet tampered with, and the attacker's data."""
    model, tokenizer, domain = loaded(bench.folder)
    return copy.deepcopy(model), Data.attacker(domain, tokenizer)


def walk_attack(
    attack: Attack,
    bench: Bench,
    seed: int = SEED,
    at_yield: Callable[[PreTrainedModel], None] = lambda model: None,
) -> list[torch.Tensor]:
    """The weights after every step."""
    seed_everything(seed)
    model, data = fresh(bench)
    attack.prepare(model)
    run = Run(seed, bench.never_exposed.load)
    path = []
    for _ in drive(attack.steps(model, data, run), run):
        path.append(weights(model))
        at_yield(model)
    return path


Walked = tuple[list[torch.Tensor], list[dict[str, float]]]
"""The weights after every outer step, and the losses of each."""


def walk_safeguard(
    safeguard: Safeguard,
    bench: Bench,
    seed: int = SEED,
    at_yield: Callable[[PreTrainedModel, Run], None] = lambda model, run: None,
    resume: Path | None = None,
) -> Walked:
    """The weights after every outer step, and the losses of each."""
    seed_everything(seed)
    original, tokenizer, domain = loaded(bench.folder)
    model = copy.deepcopy(original)
    safeguard.prepare(model)
    run = Run(seed, lambda: copy.deepcopy(original))
    if resume is not None:
        run.resume(resume, model, "it")
    path: list[torch.Tensor] = []
    losses: list[dict[str, float]] = []
    for _, here in drive(safeguard.steps(model, Data.defender(domain, tokenizer), run), run):
        require(isinstance(here, Mapping), "steps of a safeguard must yield its losses by name")
        path.append(weights(model))
        losses.append(dict(here))
        at_yield(model, run)
    return path, losses


_attack_paths: dict[str, list[torch.Tensor]] = {}
_safeguard_paths: dict[str, Walked] = {}


def attack_path(attack: Attack, bench: Bench) -> list[torch.Tensor]:
    """The undisturbed path of an attack, walked once."""
    key = digest([describe(attack), str(bench.folder)])
    if key not in _attack_paths:
        _attack_paths[key] = walk_attack(attack, bench)
    return _attack_paths[key]


def safeguard_path(safeguard: Safeguard, bench: Bench) -> Walked:
    """The undisturbed path of a safeguard, walked once."""
    key = digest([describe(safeguard), str(bench.folder)])
    if key not in _safeguard_paths:
        _safeguard_paths[key] = walk_safeguard(safeguard, bench)
    return _safeguard_paths[key]
