"""LoRA as an optimizer over plain weights walks the path of peft's LoRA."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast.attacks.finetune import FineTune
from holdfast.engine.anatomy import LinearMap, linear_maps
from holdfast.engine.low_rank import LowRankOptimizer, insert_adapters
from holdfast.engine.optimizers import make_optimizer
from holdfast.engine.run import Run
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed
from tests.families.small import build

BASE = FineTune(lora_rank=4, lora_alpha=8.0, learning_rate=5e-3, batch_size=8, max_steps=5)


@pytest.mark.parametrize(
    "attack",
    [
        BASE,
        replace(BASE, max_grad_norm=0.05),
        replace(BASE, optimizer="schedule-free-adamw"),
        replace(BASE, optimizer="sgd-momentum", learning_rate=0.1, schedule="warmup-cosine", warmup_steps=2),
    ],
    ids=["adamw", "clipped", "schedule-free", "sgd-momentum"],
)
def test_both_kinds_of_low_rank_follow_the_same_path(attack: FineTune, tiny_testbed: SmallTestbed) -> None:
    plain, data = fresh(tiny_testbed)
    plain.double()  # Adam blows a gradient that is nothing but rounding up to a whole step
    adapted = copy.deepcopy(plain)
    maps = {found.name.removesuffix(".weight"): found.weight for found in linear_maps(plain)}
    origin = {name: weight.detach().clone() for name, weight in maps.items()}
    attack.prepare(adapted)
    torch.manual_seed(7)
    for name in maps:  # in the order that the optimizer over plain weights draws them in
        factor = adapted.get_submodule(name).lora_A["default"].weight
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    torch.manual_seed(7)
    for here, there in zip(attack.steps(plain, data, Run(1)), attack.steps(adapted, data, Run(1)), strict=True):
        assert here == pytest.approx(there, rel=1e-5)
        for name, weight in maps.items():
            layer = adapted.get_submodule(name)
            change = layer.get_delta_weight("default").detach()
            walked = weight.detach() - origin[name]
            torch.testing.assert_close(walked, change, rtol=1e-6, atol=1e-8)
    assert change.any()


def test_it_starts_at_the_weights_as_they_are(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    maps = linear_maps(model)
    before = [found.weight.detach().clone() for found in maps]
    optimizer = LowRankOptimizer(maps, 4, 8.0, lambda factors: make_optimizer("adamw", factors, 1e-3))
    optimizer.train()
    optimizer.eval()
    assert all(torch.equal(was, found.weight) for was, found in zip(before, maps, strict=True))


def test_every_linear_layer_but_the_head_is_adapted(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    names = {found.name for found in linear_maps(model)}
    assert len(names) == 3 * 7
    assert all(name.endswith("_proj.weight") for name in names)


def test_a_part_that_no_text_goes_through_stays_as_it_is() -> None:
    read, unread = nn.Linear(4, 5), nn.Linear(4, 5)
    before = read.weight.detach().clone(), unread.weight.detach().clone()
    maps = [LinearMap("read", read, "weight"), LinearMap("unread", unread, "weight")]
    optimizer = LowRankOptimizer(maps, 2, 4.0, lambda factors: make_optimizer("adamw", factors, 0.1))
    read(torch.randn(6, 4)).square().sum().backward()
    optimizer.carry_gradients()
    optimizer.step()
    assert not torch.equal(read.weight, before[0])
    assert torch.equal(unread.weight, before[1])


def test_restored_state_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 5), torch.randn(6, 4)

    def make(held: nn.Linear) -> LowRankOptimizer:
        found = LinearMap("weight", held, "weight")
        return LowRankOptimizer([found], 2, 4.0, lambda factors: make_optimizer("schedule-free-adamw", factors, 0.1))

    def step(held: nn.Linear, optimizer: LowRankOptimizer) -> None:
        optimizer.train()
        (inputs @ held.weight.T).square().sum().backward()
        optimizer.carry_gradients()
        assert held.weight.grad is None
        optimizer.step()
        optimizer.eval()

    optimizer = make(layer)
    for _ in range(3):
        step(layer, optimizer)
    other = copy.deepcopy(layer)
    restored = make(other)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(layer, optimizer)
        step(other, restored)
        assert torch.equal(layer.weight, other.weight)


def test_what_a_recurrent_layer_keeps_stays_in_the_layer() -> None:
    """It resets that by writing to a module that LoRA wraps: what stood there of another batch was read as its own."""
    model = build("recurrent_gemma", 20)
    ids = torch.arange(12).view(4, 3)
    with torch.no_grad():
        expected = [model(input_ids=rows, use_cache=False).logits for rows in (ids, ids[:2])]
        insert_adapters(model, 2, 4.0, 0.0)
        logits = [model(input_ids=rows, use_cache=False).logits for rows in (ids, ids[:2])]
    torch.testing.assert_close(logits, expected)
