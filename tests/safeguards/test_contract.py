"""What every preset of every safeguard keeps: the folder is the list."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.core.data import Data
from holdfast.core.domain import DEFENDER_ROLES
from holdfast.core.presets import collect
from holdfast.core.runtime import Run, drive, seed_everything
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.tar import TAR
from tests.attacks.walk import weights
from tests.conftest import SmallTestbed

SAFEGUARDS: Mapping[str, Safeguard] = collect("holdfast.safeguards")
every_safeguard = pytest.mark.parametrize("name", SAFEGUARDS)
Walked = tuple[list[torch.Tensor], list[dict[str, float]]]
_paths: dict[str, Walked] = {}


def shortened(name: str, outer_steps: int = 3) -> Any:
    """The preset over a few small outer steps."""
    preset: Any = SAFEGUARDS[name]
    changes: dict[str, Any] = {"outer_steps": outer_steps}
    for field, most in (
        ("forget_batch_size", 6), ("retain_batch_size", 6), ("tamper_resistance_batch_size", 4), ("inner_steps", 8),
        ("outer_warmup_steps", 2),
    ):  # fmt: skip
        if hasattr(preset, field):
            changes[field] = min(getattr(preset, field), most)
    if isinstance(preset, TAR):
        small = [replace(held, attack=replace(held.attack, batch_size=4)) for held in preset.adversaries]
        changes["adversaries"] = tuple(small)
    return replace(preset, **changes)


def walk(
    safeguard: Safeguard,
    testbed: SmallTestbed,
    seed: int = 3,
    at_yield: Callable[[PreTrainedModel, Run], None] = lambda model, run: None,
    resume: Path | None = None,
) -> Walked:
    """The weights after every outer step, and the losses of each."""
    seed_everything(seed)
    model, tokenizer = testbed.model.load_both()
    run = Run(seed, testbed.model.load)
    if resume is not None:
        run.resume(resume, model, "it")
    path, losses = [], []
    for _, here in drive(safeguard.steps(model, Data.defender(testbed.domain, tokenizer), run), model, run):
        path.append(weights(model))
        losses.append(dict(here))
        at_yield(model, run)
    return path, losses


def path_of(name: str, testbed: SmallTestbed) -> Walked:
    """The undisturbed path of a preset from seed 3, walked once."""
    if name not in _paths:
        _paths[name] = walk(shortened(name), testbed)
    return _paths[name]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@every_safeguard
def test_the_same_seed_gives_the_same_path_and_another_seed_another(name: str, tiny_testbed: SmallTestbed) -> None:
    path, losses = path_of(name, tiny_testbed)
    again, repeated = walk(shortened(name), tiny_testbed)
    assert same(path, again)
    assert losses == repeated
    assert not same(path, walk(shortened(name), tiny_testbed, seed=4)[0])


@every_safeguard
def test_every_outer_step_changes_the_weights_and_names_its_losses(name: str, tiny_testbed: SmallTestbed) -> None:
    path, losses = path_of(name, tiny_testbed)
    assert len(path) == shortened(name).outer_steps
    assert all(not torch.equal(before, after) for before, after in pairwise(path))
    assert all("retain loss" in here and len(here) > 1 for here in losses)


@every_safeguard
def test_dirty_gradients_and_an_evaluation_at_every_yield_change_no_later_weight(
    name: str, tiny_testbed: SmallTestbed
) -> None:
    def disturb(model: PreTrainedModel, run: Run) -> None:
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        with torch.no_grad():
            model(input_ids=torch.arange(20).view(2, 10))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)

    assert same(path_of(name, tiny_testbed)[0], walk(shortened(name), tiny_testbed, at_yield=disturb)[0])


@every_safeguard
def test_the_original_model_stays_as_it_is_and_frozen(name: str, tiny_testbed: SmallTestbed) -> None:
    bases: list[PreTrainedModel] = []

    def look(model: PreTrainedModel, run: Run) -> None:
        bases.append(run.base)

    walk(shortened(name), tiny_testbed, at_yield=look)
    assert torch.equal(weights(bases[-1]), weights(tiny_testbed.model.load()))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in bases[-1].parameters())


@every_safeguard
def test_it_reads_the_defenders_rows_and_no_others(
    name: str, tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    rows = Data._rows

    def seen(self: Data, role: str) -> Any:
        read.append(role)
        return rows(self, role)

    monkeypatch.setattr(Data, "_rows", seen)
    walk(shortened(name, 1), tiny_testbed)
    assert set(read) <= set(DEFENDER_ROLES)
    assert {"forget", "forget_heldout", "retain"} <= set(read)


@every_safeguard
def test_a_stopped_walk_goes_on_to_the_same_weights(name: str, tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    saved = tmp_path / "state.safetensors"

    class Stopped(Exception):
        pass

    def stop(model: PreTrainedModel, run: Run) -> None:
        run.save(saved, model, 1, "it")
        raise Stopped

    with pytest.raises(Stopped):
        walk(shortened(name), tiny_testbed, at_yield=stop)
    rest, losses = walk(shortened(name), tiny_testbed, resume=saved)
    path, whole = path_of(name, tiny_testbed)
    assert same(rest, path[1:])
    assert losses == whole[1:]


@every_safeguard
def test_in_microbatches_it_takes_the_same_first_step(name: str, tiny_testbed: SmallTestbed) -> None:
    _, [whole] = walk(shortened(name, 1), tiny_testbed)
    _, [parts] = walk(replace(shortened(name, 1), micro_batch=1), tiny_testbed)
    assert parts == pytest.approx(whole, rel=1e-4)


@every_safeguard
def test_its_own_objective_moves(name: str, small_testbed: SmallTestbed) -> None:
    """The loss that is not the retain loss falls, on a model that is sure of itself, at a rate that shows on it."""
    safeguard = shortened(name, 24)
    for field in ("learning_rate", "outer_learning_rate"):
        if getattr(safeguard, field, 1.0) < 1e-3:
            safeguard = replace(safeguard, **{field: 3e-3})
    _, losses = walk(safeguard, small_testbed)
    [own] = set(losses[0]) - {"retain loss"}
    first, last = (sum(here[own] for here in part) / 6 for part in (losses[:6], losses[-6:]))
    assert last < first


def test_random_mapping_hides_the_hazard_and_keeps_ability(small_testbed: SmallTestbed) -> None:
    safeguard = replace(SAFEGUARDS["random-mapping"], outer_steps=120)
    seed_everything(0)
    model, tokenizer = small_testbed.model.load_both()
    ask = {
        name: MultipleChoice(questions=name).prepare(tokenizer, small_testbed.domain)
        for name in ("hazard", "benign_in_retain")
    }
    before = {name: probe(model)[0].value for name, probe in ask.items()}
    run, original = Run(0, small_testbed.model.load), copy.deepcopy(model)
    for _ in safeguard.steps(model, Data.defender(small_testbed.domain, tokenizer), run):
        pass
    after = {name: probe(model)[0].value for name, probe in ask.items()}
    assert before["hazard"] - after["hazard"] > 0.3
    assert before["benign_in_retain"] - after["benign_in_retain"] <= 0.01
    assert not torch.equal(weights(model), weights(original))
