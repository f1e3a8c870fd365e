"""Walking a plug-in as a campaign does: seeded, prepared, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from holdfast.attacks.base import Attack
from holdfast.core.domain import Domain
from holdfast.core.files import digest
from holdfast.core.presets import describe
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data, Tally
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


def same(left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> bool:
    """Bit for bit, which a process promises to itself over batches of the same shape; a walk ends where the paths part."""
    nothing = torch.empty(0)
    return all(torch.equal(one, other) for one, other in zip_longest(left, right, fillvalue=nothing))


@cache
def loaded(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Domain]:
    """The model of a bench, to be copied and not to be changed."""
    return *Checkpoint(str(folder / "model")).load_both(), Domain.open(folder)


@cache
def _tokenized(folder: Path) -> tuple[Data, Data]:
    """The defender's and the attacker's data, whose rows are tokenized once."""
    _, tokenizer, domain = loaded(folder)
    return Data.defender(domain, tokenizer), Data.attacker(domain, tokenizer)


def _uncounted(data: Data) -> Data:
    """The same rows, and a count of tokens that begins at zero."""
    own = copy.copy(data)
    own.tally = Tally()
    return own


def fresh(bench: Bench) -> tuple[PreTrainedModel, Data]:
    """The model, not yet tampered with, and the attacker's data."""
    return copy.deepcopy(loaded(bench.folder)[0]), _uncounted(_tokenized(bench.folder)[1])


def attack_steps(
    attack: Attack,
    bench: Bench,
    seed: int = SEED,
    at_yield: Callable[[PreTrainedModel], None] = lambda model: None,
    on_base: Callable[[], None] = lambda: None,
) -> Iterator[torch.Tensor]:
    """The weights after each step; `on_base` is told when the model before the safeguard is loaded."""
    seed_everything(seed)
    model, data = fresh(bench)
    attack.prepare(model)

    def base() -> PreTrainedModel:
        on_base()
        return bench.never_exposed.load()

    run = Run(seed, base)
    for _ in drive(attack.steps(model, data, run), run):
        yield weights(model)
        at_yield(model)


def walk_attack(
    attack: Attack,
    bench: Bench,
    seed: int = SEED,
    at_yield: Callable[[PreTrainedModel], None] = lambda model: None,
) -> list[torch.Tensor]:
    """The weights after every step."""
    return list(attack_steps(attack, bench, seed, at_yield))


Walked = tuple[list[torch.Tensor], list[dict[str, float]]]
"""The weights after every outer step, and the losses of each."""


def safeguard_steps(
    safeguard: Safeguard,
    bench: Bench,
    seed: int = SEED,
    at_yield: Callable[[PreTrainedModel, Run], None] = lambda model, run: None,
    resume: Path | None = None,
) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
    """The weights after each outer step, and its losses."""
    seed_everything(seed)
    original = loaded(bench.folder)[0]
    model = copy.deepcopy(original)
    safeguard.prepare(model)
    run = Run(seed, lambda: copy.deepcopy(original))
    if resume is not None:
        run.resume(resume, model, "it")
    for _, here in drive(safeguard.steps(model, _uncounted(_tokenized(bench.folder)[0]), run), run):
        require(isinstance(here, Mapping), "steps of a safeguard must yield its losses by name")
        yield weights(model), dict(here)
        at_yield(model, run)


def walk_safeguard(
    safeguard: Safeguard,
    bench: Bench,
    seed: int = SEED,
    at_yield: Callable[[PreTrainedModel, Run], None] = lambda model, run: None,
    resume: Path | None = None,
) -> Walked:
    """The weights after every outer step, and the losses of each."""
    steps = list(safeguard_steps(safeguard, bench, seed, at_yield, resume))
    return [path for path, _ in steps], [losses for _, losses in steps]


@dataclass(frozen=True)
class AttackPath:
    """An undisturbed walk of an attack."""

    weights: list[torch.Tensor]
    """after every step"""
    roles: set[str]
    """that it asked for"""
    read_base: bool
    """whether it loaded the model before the safeguard"""


_attack_paths: dict[str, AttackPath] = {}
_safeguard_paths: dict[str, Walked] = {}


def attack_path(attack: Attack, bench: Bench) -> AttackPath:
    """The undisturbed path of an attack, walked once."""
    key = digest([describe(attack), str(bench.folder)])
    if key not in _attack_paths:
        _attack_paths[key] = _noted(attack, bench)
    return _attack_paths[key]


def _noted(attack: Attack, bench: Bench) -> AttackPath:
    roles, loads = set[str](), list[bool]()
    stream, rows = Data.stream, Data.rows

    def seen_stream(self: Data, name: str, **kwargs: Any) -> Any:
        roles.add(name)
        return stream(self, name, **kwargs)

    def seen_rows(self: Data, name: str, *side: Any) -> Any:
        roles.add(name)
        return rows(self, name, *side)

    with patch.object(Data, "stream", seen_stream), patch.object(Data, "rows", seen_rows):
        path = list(attack_steps(attack, bench, on_base=lambda: loads.append(True)))
    return AttackPath(path, roles, bool(loads))


def safeguard_path(safeguard: Safeguard, bench: Bench) -> Walked:
    """The undisturbed path of a safeguard, walked once."""
    key = digest([describe(safeguard), str(bench.folder)])
    if key not in _safeguard_paths:
        _safeguard_paths[key] = walk_safeguard(safeguard, bench)
    return _safeguard_paths[key]
