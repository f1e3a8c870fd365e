"""LoRA as an optimizer over plain weights walks the path of peft's LoRA."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from holdfast.attacks.finetune import FineTune
from holdfast.engine.low_rank import LowRankOptimizer, linear_weights
from holdfast.engine.optimizers import make_optimizer
from holdfast.engine.run import Run
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed

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
    names = list(linear_weights(plain))
    origin = {name: weight.detach().clone() for name, weight in linear_weights(plain).items()}
    attack.prepare(adapted)
    torch.manual_seed(7)
    for name in names:  # in the order that the optimizer over plain weights draws them in
        factor = adapted.get_submodule(name).lora_A["default"].weight
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    torch.manual_seed(7)
    for here, there in zip(attack.steps(plain, data, Run(1)), attack.steps(adapted, data, Run(1)), strict=True):
        assert here == pytest.approx(there, rel=1e-5)
        for name in names:
            layer = adapted.get_submodule(name)
            change = layer.get_delta_weight("default").detach()
            walked = linear_weights(plain)[name].detach() - origin[name]
            torch.testing.assert_close(walked, change, rtol=1e-6, atol=1e-8)
    assert change.any()


def test_it_starts_at_the_weights_as_they_are(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    held = list(linear_weights(model).values())
    before = [weight.detach().clone() for weight in held]
    optimizer = LowRankOptimizer(held, 4, 8.0, lambda factors: make_optimizer("adamw", factors, 1e-3))
    optimizer.train()
    optimizer.eval()
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))


def test_every_linear_layer_but_the_head_is_adapted(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    names = set(linear_weights(model))
    assert "lm_head" not in names
    assert len(names) == 3 * 7
    assert all(name.endswith("_proj") for name in names)


def test_restored_state_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    weight, inputs = nn.Parameter(torch.randn(5, 4)), torch.randn(6, 4)

    def make(held: nn.Parameter) -> LowRankOptimizer:
        return LowRankOptimizer([held], 2, 4.0, lambda factors: make_optimizer("schedule-free-adamw", factors, 0.1))

    def step(held: nn.Parameter, optimizer: LowRankOptimizer) -> None:
        optimizer.train()
        (inputs @ held.T).square().sum().backward()
        optimizer.carry_gradients()
        assert held.grad is None
        optimizer.step()
        optimizer.eval()

    optimizer = make(weight)
    for _ in range(3):
        step(weight, optimizer)
    other = nn.Parameter(weight.detach().clone())
    restored = make(other)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(weight, optimizer)
        step(other, restored)
        assert torch.equal(weight, other)
