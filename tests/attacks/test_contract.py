"""What every preset of every attack keeps: the folder is the list."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.base import Attack
from holdfast.attacks.transfer import Transfer
from holdfast.core.presets import collect, describe, restore
from holdfast.engine.data import Data
from holdfast.engine.losses import next_token_loss
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from tests.attacks.walk import distinct, fresh, same, shortened, walk, weights
from tests.conftest import SmallTestbed

ATTACKS: Mapping[str, Attack] = collect("holdfast.attacks")
DISTINCT = distinct(ATTACKS)


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Of several presets that differ in numbers alone, the default run has one."""
    marked = [pytest.param(name, marks=() if name in DISTINCT else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


every_attack = each(ATTACKS)
_paths: dict[str, list[torch.Tensor]] = {}


def path_of(name: str, testbed: SmallTestbed) -> list[torch.Tensor]:
    """The undisturbed path of a preset from seed 3, walked once."""
    if name not in _paths:
        _paths[name] = walk(shortened(ATTACKS[name]), testbed)
    return _paths[name]


@every_attack
def test_every_step_changes_the_weights(name: str, tiny_testbed: SmallTestbed) -> None:
    path = path_of(name, tiny_testbed)
    assert len(path) == shortened(ATTACKS[name]).max_steps
    assert all(not torch.equal(before, after) for before, after in pairwise(path))


@every_attack
def test_the_same_seed_gives_the_same_path_whatever_happens_at_a_yield_and_another_seed_another(
    name: str, tiny_testbed: SmallTestbed
) -> None:
    """To the bit, which a process promises to itself over batches of the same shape."""

    def disturb(model: PreTrainedModel) -> None:
        assert not any(module.training for module in model.modules())
        with torch.no_grad():
            model(input_ids=torch.arange(20).view(2, 10))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)

    path, attack = path_of(name, tiny_testbed), shortened(ATTACKS[name])
    assert same(path, walk(attack, tiny_testbed, at_yield=disturb))
    assert same(path, walk(attack, tiny_testbed, seed=4)) is not attack.draws


@every_attack
def test_it_asks_for_exactly_the_rows_that_it_says_it_reads(
    name: str, tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stream, rows = Data.stream, Data.rows

    def seen_stream(self: Data, name: str, **kwargs: Any) -> object:
        asked.append(name)
        return stream(self, name, **kwargs)

    def seen_rows(self: Data, name: str, *side: Any) -> object:
        asked.append(name)
        return rows(self, name, *side)

    monkeypatch.setattr(Data, "stream", seen_stream)
    monkeypatch.setattr(Data, "rows", seen_rows)
    attack = shortened(ATTACKS[name], steps=2)
    walk(attack, tiny_testbed)
    assert set(asked) == set(attack.reads())
    assert set(asked) <= {"hazard", "hazard_ood", "hazard_all", "benign"}


@every_attack
def test_a_walk_may_be_closed_midway_and_another_begun(name: str, tiny_testbed: SmallTestbed) -> None:
    attack = shortened(ATTACKS[name], 2)
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    attack.prepare(model)
    steps = attack.steps(model, data, Run(3, tiny_testbed.never_exposed.load))
    next(steps)
    steps.close()
    assert next(steps, None) is None
    assert not model.training
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(20).view(2, 10)).logits).all()
    again = Run(4, tiny_testbed.never_exposed.load)
    assert len(list(attack.steps(model, data, again))) == attack.max_steps


@every_attack
def test_a_stopped_walk_goes_on_to_the_same_weights(name: str, tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    attack = shortened(ATTACKS[name])
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    attack.prepare(model)
    run = Run(3, tiny_testbed.never_exposed.load)
    for step, _ in drive(attack.steps(model, data, run), run):
        if step == max(attack.max_steps - 2, 1):
            break
    run.save(tmp_path / "state", model, step, "it")
    seed_everything(99)
    model, data = fresh(tiny_testbed)
    attack.prepare(model)
    run = Run(3, tiny_testbed.never_exposed.load)
    run.resume(tmp_path / "state", model, "it")
    for _ in drive(attack.steps(model, data, run), run):
        pass
    assert torch.equal(weights(model), path_of(name, tiny_testbed)[-1])


def objective(model: PreTrainedModel, data: Data, attack: Attack) -> float:
    """The mean loss over the first rows of all that it reads."""
    total = 0.0
    for name in attack.reads():
        stream = data.stream(name, batch_size=64, seed=0)
        batch = stream.batch(stream.rows[:64])
        with torch.no_grad():
            total += next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count).item()
    return total / len(attack.reads())


@each(name for name, attack in ATTACKS.items() if attack.optimises)
def test_the_attacker_s_own_objective_improves(name: str, tiny_testbed: SmallTestbed) -> None:
    attack = ATTACKS[name]
    rate = getattr(attack, "learning_rate", None)
    # Rates for models of billions of weights would not be seen on this one within a few steps.
    attack = shortened(attack, 12, **({"learning_rate": rate * 100} if rate is not None and rate < 1e-4 else {}))
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    attack.prepare(model)
    # A transferred update lowers the loss of the model it was computed on, and so that of its like.
    base = tiny_testbed.model if isinstance(attack, Transfer) else tiny_testbed.never_exposed
    run, before = Run(3, base.load), objective(model, data, attack)
    losses = [loss for _, loss in drive(attack.steps(model, data, run), run)]
    assert objective(model, data, attack) < before
    assert min(losses[-3:]) < losses[0]


# What the machinery asks an attack instead of looking at its fields. No model is needed, so every preset answers.


@pytest.mark.parametrize("name", ATTACKS)
def test_a_kind_is_json_keeps_its_class_and_leaves_sizes_out(name: str) -> None:
    attack = ATTACKS[name]
    kind = attack.kind()
    assert json.loads(json.dumps(kind, allow_nan=False)) == kind
    assert kind["class"] == type(attack).__name__
    assert "max_steps" in attack.sizes
    assert not set(kind) & attack.sizes
    assert replace(attack, max_steps=attack.max_steps + 1).kind() == kind
    assert restore("holdfast.attacks", json.loads(json.dumps(describe(attack)))).kind() == kind


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_says_its_size_and_what_it_takes_from_the_base(name: str) -> None:
    attack = ATTACKS[name]
    tune = getattr(attack, "tune", None)
    assert attack.rows_per_step == (tune or attack).batch_size  # type: ignore[union-attr]
    assert attack.transfers is isinstance(attack, Transfer)
    assert attack.uses_base or not attack.transfers


def test_a_family_is_the_class_whatever_the_settings() -> None:
    tuning, other = ATTACKS["full-adamw-1e-3"], ATTACKS["lora-r4-adamw-5e-3"]
    assert tuning.is_family_of(other)
    assert tuning.kind() != other.kind()
    assert not tuning.is_family_of(ATTACKS["jailbreak-backdoor-adamw-1e-3"])
