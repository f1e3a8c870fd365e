"""What waits on another device gives the same numbers, and is where it should be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data
from holdfast.engine.optimizers import OptimizerName, make_optimizer, published_point, training_point
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.sharded import GradientSum, Snapshot, clear_gradients, expect
from holdfast.engine.walk import drive
from holdfast.runs.stages import Recipe, build
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.tar import TAR
from tests.conftest import SmallTestbed

_TAR = TAR(
    adversaries=(Adversary(attack=FineTune(batch_size=2)),),
    outer_steps=2,
    inner_steps=2,
    every=1,
    tamper_resistance_batch_size=2,
    retain_batch_size=2,
    persistent_adversaries=1,
    persist_probability=1.0,
    outer_learning_rate=1e-3,
    outer_warmup_steps=0,
)


def trained(name: OptimizerName, dtype: torch.dtype, aside: list[str | None]) -> list[torch.Tensor]:
    """Weights after one step for each entry of `aside`; at each, a fresh optimizer goes on from the state of the one before."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((70, 64), (5,), (8, 12))]
    state: dict[str, Any] | None = None
    for step, device in enumerate(aside):
        drawn = torch.get_rng_state()  # making a lean optimizer draws its seed
        optimizer = make_optimizer(name, weights, 0.01, weight_decay=0.1, aside=device)
        torch.set_rng_state(drawn)
        if state is not None:
            optimizer.load_state_dict(state)
        training_point(optimizer)
        for weight in weights:
            gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            weight.grad = gradient.to(dtype)
        optimizer.step()
        published_point(optimizer)
        state = optimizer.state_dict()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_an_optimizer_steps_alike_wherever_its_states_wait_and_goes_on_elsewhere(
    name: OptimizerName, dtype: torch.dtype
) -> None:
    plain = trained(name, dtype, [None] * 4)
    for aside in (["cpu"] * 4, [None, "cpu", "cpu", None]):
        for here, there in zip(plain, trained(name, dtype, aside), strict=True):
            assert torch.equal(here, there)


def test_tar_gives_the_same_weights_with_its_outer_state_aside(tiny_testbed: SmallTestbed) -> None:
    def walked(aside: str | None) -> list[torch.Tensor]:
        seed_everything(3)
        model, tokenizer = tiny_testbed.model.load_both()
        run = Run(3, tiny_testbed.never_exposed.load, aside=aside)
        for _ in drive(_TAR.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run), run):
            pass
        return [weight.detach().clone() for weight in model.parameters()]

    before = tiny_testbed.model.load().parameters()
    for weight, here, there in zip(before, walked(None), walked("cpu"), strict=True):
        assert torch.equal(here, there)
        assert not torch.equal(here, weight)


def test_offload_is_in_no_identity_and_is_refused_where_nothing_waits(tiny_testbed: SmallTestbed) -> None:
    recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=[("it", _TAR)])
    assert replace(recipe, options=Options(offload=True)).keys() == recipe.keys()
    with pytest.raises(HoldfastError, match="no stage has them; leave it out"):
        build(replace(recipe, stages=["grad-diff"], options=Options(offload=True)))


def test_a_sum_of_gradients_does_not_share_the_gradients_memory() -> None:
    model = nn.Linear(3, 2, bias=False)
    sums, weights = GradientSum(model, "cpu"), Snapshot(model, "cpu")
    for scale in (1.0, 0.5):
        model.weight.grad = torch.ones(2, 3)
        sums.take(scale)
    sums.give()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((2, 3), 1.5))
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.allclose(weights.difference()[0], torch.ones(2, 3))


def test_what_waits_is_on_the_host_and_comes_to_the_device_for_its_update() -> None:
    """On a device of torch's own for tests, with tensors without content: an operation on two devices is an error there."""
    code = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
_setup_privateuseone_for_python_backend("away")
from holdfast.engine.aside import lent, send
from holdfast.engine.optimizers import make_optimizer, published_point, training_point
from holdfast.engine.sharded import GradientSum, Snapshot
with FakeTensorMode(allow_non_fake_inputs=True):
    for name in ("adamw", "schedule-free-adamw", "sgd-momentum", "muon"):
        weights = [nn.Parameter(torch.empty(4, 4, device="away")), nn.Parameter(torch.empty(4, device="away"))]
        model = nn.Module()
        model.first, model.second = weights
        optimizer = make_optimizer(name, weights, 0.1, aside="cpu")
        sums, start = GradientSum(model, "cpu"), Snapshot(model, "cpu")
        for _ in range(2):
            training_point(optimizer)
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            sums.take()
            assert {each.device.type for each in sums._sum} == {"cpu"}
            sums.give()
            assert {weight.grad.device.type for weight in weights} == {"away"}
            optimizer.step()
            published_point(optimizer)
        for kind in getattr(optimizer, "kinds", [optimizer]):
            found = [value for state in kind._optimizer.state.values() for value in state.values()]
            assert {value.device.type for value in found if isinstance(value, torch.Tensor) and value.ndim} == {"cpu"}, name
        assert {each.device.type for each in (*start._saved, *start.difference())} == {"cpu"}
        start.restore()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_a_model_that_is_lent_one_layer_at_a_time_is_on_the_device() -> None:
    """On a device of torch's own for tests, as above; a layer reads on the device, and is back where it waits at its end."""
    code = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import LlamaConfig, LlamaForCausalLM
_setup_privateuseone_for_python_backend("away")
from holdfast.engine.aside import lent
from holdfast.engine.rehearsal import _converting_in_place
with FakeTensorMode(allow_non_fake_inputs=True), _converting_in_place():
    shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=9)
    model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="eager"))
    beside = torch.nn.Linear(1, 1, device="away")
    layers, seen = list(model.model.layers), []
    places = lambda: [next(layer.parameters()).device.type for layer in layers]
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(places()))
    with lent(model, beside), torch.no_grad():
        logits = model(input_ids=torch.zeros(1, 4, dtype=torch.int64, device="away"), use_cache=False).logits
        assert logits.device.type == "away"
        assert places() == ["cpu"] * 3
    assert seen == [["away" if here == turn else "cpu" for here in range(3)] for turn in range(3)], seen
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("passes", "kept"), [(1, torch.bfloat16), (2, torch.float32)])
def test_the_gradient_of_one_pass_has_the_type_of_its_weight_and_that_of_several_adds_up_in_float32(
    passes: int, kept: torch.dtype
) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    for _ in range(2):
        clear_gradients([weight])
        expect(passes, [weight])
        for _ in range(passes):
            (weight * 2).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        assert weight.grad.dtype == kept
    clear_gradients([weight])
    (weight * 2).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad.dtype == torch.float32, "whoever says nothing has a gradient that adds up"


@pytest.mark.parametrize(("rows", "kept"), [(None, torch.bfloat16), (1, torch.float32)])
def test_attacks_and_outer_loops_say_how_many_passes_they_take(
    rows: int | None, kept: torch.dtype, tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lean precision whole batches have narrow gradients: of the adversary, of tamper resistance, of what is retained."""
    model, tokenizer = tiny_testbed.model.load(precision="lean"), tiny_testbed.model.load_tokenizer()
    first = next(iter(model.parameters()))
    seen: list[torch.dtype] = []
    take = GradientSum.take

    def noting(self: GradientSum, *given: Any, **named: Any) -> None:
        assert first.grad is not None
        seen.append(first.grad.dtype)
        take(self, *given, **named)

    monkeypatch.setattr(GradientSum, "take", noting)
    data = Data.defender(tiny_testbed.domain, tokenizer)
    run = Run(3, lambda: tiny_testbed.never_exposed.load(precision="lean"), micro_batch=rows)
    for _ in drive(replace(_TAR, outer_steps=1, micro_batch=rows).steps(model, data, run), run):
        pass
    assert seen == [kept] * 3, "two of the trajectory, one of the retain rows"
    attack = FineTune(batch_size=2, max_steps=1)
    rest = Run(3, micro_batch=rows)
    for _ in drive(attack.steps(model, Data.attacker(tiny_testbed.domain, tokenizer), rest), rest):
        assert first.grad is not None
        assert first.grad.dtype == kept


def test_the_original_is_loaded_where_it_waits() -> None:
    places: list[str] = []

    def load(device: str = "cpu") -> Any:
        places.append(device)
        return nn.Linear(2, 2, device=device)

    assert next(Run(0, load, aside="meta").base_aside.parameters()).device.type == "meta"
    assert next(Run(0, load).base_aside.parameters()).device.type == "cpu"
    assert places == ["meta", "cpu"]
    early = Run(0, load, aside="meta")
    assert early.base.weight.device.type == "cpu"  # type: ignore[union-attr]
    assert early.base_aside.weight.device.type == "meta", "what was loaded before is sent"  # type: ignore[union-attr]
