"""The undo of a reparameterisation: one edit that keeps the function and forgets the defender's basis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.reparameterise import PRESETS, Reparameterise
from holdfast.core.types import HoldfastError
from holdfast.engine.adjacent import adjacent_maps
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from holdfast.safeguards.spec_def import SpecDef
from tests.attacks.walk import fresh, walk, weights
from tests.conftest import SmallTestbed

IDS = torch.arange(60).view(4, 15)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        held: torch.Tensor = model(input_ids=IDS).logits
    return held


def edited(attack: Attack, model: PreTrainedModel, data: Data) -> PreTrainedModel:
    assert len(list(attack.steps(model, data, Run(3)))) == attack.max_steps
    return model


@pytest.mark.parametrize("edits", [1, 4])
def test_without_clipping_the_function_stays(edits: int, tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    before = logits(model)
    edited(Reparameterise(max_steps=edits), model, data)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


def test_as_many_edits_end_where_one_does(tiny_testbed: SmallTestbed) -> None:
    path = walk(Reparameterise(max_steps=4, clip=4.0), tiny_testbed)
    assert torch.equal(path[-1], walk(Reparameterise(clip=4.0), tiny_testbed)[0])


def test_it_comes_to_the_same_weights_with_and_without_the_defence(tiny_testbed: SmallTestbed) -> None:
    plain, data = fresh(tiny_testbed)
    defended, _ = fresh(tiny_testbed)
    defender = Data.defender(tiny_testbed.domain, tiny_testbed.model.load_tokenizer())
    list(SpecDef().steps(defended, defender, Run(0, tiny_testbed.model.load)))
    apart = (weights(plain) - weights(defended)).norm()
    for model in (plain, defended):
        edited(Reparameterise(), model, data)
    assert (weights(plain).abs() - weights(defended).abs()).norm() < 1e-5 * apart
    for pair in adjacent_maps(defended):
        lengths = pair.written().norm(dim=-1), pair.read().norm(dim=-2)
        torch.testing.assert_close(*lengths, rtol=1e-3, atol=1e-6)


def test_clipping_bounds_the_singular_values_by_medians(tiny_testbed: SmallTestbed) -> None:
    free, data = fresh(tiny_testbed)
    clipped, _ = fresh(tiny_testbed)
    edited(Reparameterise(), free, data)
    edited(Reparameterise(clip=1.5), clipped, data)
    some = False
    for kept, cut in zip(linear_maps(free), linear_maps(clipped), strict=True):
        before, after = (torch.linalg.svdvals(found.weight.detach()) for found in (kept, cut))
        torch.testing.assert_close(after, before.clamp(max=1.5 * before.median()), rtol=1e-3, atol=1e-5)
        some |= bool(before.max() > 1.5 * before.median())
    assert some


def test_fresh_low_rank_layers_come_first_and_are_not_clipped(tiny_testbed: SmallTestbed) -> None:
    attack = Reparameterise(max_steps=2, clip=1.0, tune=FineTune(lora_rank=4, batch_size=2))
    model, data = fresh(tiny_testbed)
    attack.prepare(model)
    fresh_layers = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    assert fresh_layers
    next(attack.steps(model, data, Run(3)))
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], held) for name, held in fresh_layers.items())


def test_fine_tuning_takes_what_the_edit_leaves(tiny_testbed: SmallTestbed) -> None:
    tune = FineTune(batch_size=2, learning_rate=1e-3)
    attack = Reparameterise(max_steps=4, tune=tune)
    path = walk(attack, tiny_testbed)
    assert len(path) == 4
    model, data = fresh(tiny_testbed)
    edited(Reparameterise(), model, data)
    assert torch.equal(path[0], weights(model))
    edited(replace(tune, max_steps=3), model, data)
    assert torch.equal(path[-1], weights(model))


def test_it_says_what_it_reads_and_whether_it_draws() -> None:
    edit = PRESETS["refold"]
    assert edit.reads() == ("hazard",)
    assert not edit.draws
    assert not edit.optimises
    mixed = Reparameterise(max_steps=11, tune=FineTune(hazard="hazard_ood", benign_share=0.5, benign_first=0.2))
    assert mixed.reads() == ("hazard", "hazard_ood", "benign")
    assert mixed.draws
    assert mixed.optimises
    assert mixed.benign_steps == 1 + 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"clip": 0.5}, "clip must be at least 1"),
        ({"tune": FineTune()}, "max_steps must be at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Reparameterise(**changes)
