"""What an attack costs: counted right, and counting changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from holdfast.attacks.base import Attack
from holdfast.core.presets import pick
from holdfast.engine.costs import Memory, Meter, gradient_norm, update_size
from holdfast.engine.run import Run, seed_everything
from tests.attacks.walk import fresh, shortened, weights
from tests.conftest import SmallTestbed

NAMES = ("full-adamw-1e-3", "lora-r4-adamw-5e-3", "evolution-vectors-adam-1e-2", "latent-pgd-three-layers")


def walked(name: str, testbed: SmallTestbed, how: str) -> tuple[torch.Tensor, Meter, float]:
    """Weights after a short walk, what was counted, and what torch counts."""
    attack: Attack = shortened(pick("holdfast.attacks", name), 3)
    seed_everything(3)
    model, data = fresh(testbed)
    attack.prepare(model)
    meter, steps = Meter(data), attack.steps(model, data, Run(3, testbed.never_exposed.load))
    if how == "torch":
        with FlopCounterMode(display=False) as counter:
            list(steps)
        return weights(model), meter, counter.get_total_flops()
    list(meter.walk(steps) if how == "counted" else steps)
    return weights(model), meter, 0.0


@pytest.mark.parametrize("name", NAMES)
def test_counting_changes_no_weight_and_agrees_with_torch(name: str, tiny_testbed: SmallTestbed) -> None:
    plain, _, _ = walked(name, tiny_testbed, "plain")
    counted, meter, _ = walked(name, tiny_testbed, "counted")
    assert torch.equal(plain, counted)
    _, _, flops = walked(name, tiny_testbed, "torch")
    assert meter.flops == pytest.approx(flops, rel=0.02)


def test_tokens_are_those_of_the_batches_that_were_read(tiny_testbed: SmallTestbed) -> None:
    _, meter, _ = walked("full-adamw-1e-3", tiny_testbed, "counted")
    _, data = fresh(tiny_testbed)
    stream = data.stream("hazard", batch_size=8, seed=3)
    assert meter.tokens == sum(len(row.ids) for _ in range(3) for row in stream.take(8))


def test_what_the_caller_does_between_two_steps_is_not_counted(tiny_testbed: SmallTestbed) -> None:
    _, meter, _ = walked("full-adamw-1e-3", tiny_testbed, "counted")
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    again = Meter(data)
    for _ in again.walk(shortened(pick("holdfast.attacks", "full-adamw-1e-3"), 3).steps(model, data, Run(3))):
        model(input_ids=torch.arange(20).view(2, 10))
    assert again.flops == meter.flops


def test_a_meter_goes_on_from_its_state(tiny_testbed: SmallTestbed) -> None:
    _, meter, _ = walked("full-adamw-1e-3", tiny_testbed, "counted")
    _, data = fresh(tiny_testbed)
    other = Meter(data)
    other.load_state_dict(meter.state_dict())
    assert (other.flops, other.tokens) == (meter.flops, meter.tokens) != (0, 0)


@pytest.mark.parametrize("name", ["full-adamw-1e-3", "lora-r4-adamw-5e-3"])
def test_the_size_of_an_update_is_that_of_the_difference(name: str, tiny_testbed: SmallTestbed) -> None:
    attack = replace(pick("holdfast.attacks", name), max_steps=3)
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    before = weights(model)
    assert update_size(model, tiny_testbed.folder / "model") == 0.0
    attack.prepare(model)
    list(attack.steps(model, data, Run(3)))
    found = update_size(model, tiny_testbed.folder / "model")
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]:
        layer.merge()
    held = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "lora_" not in n}
    after = torch.cat([held[n].detach().flatten() for n, _ in fresh(tiny_testbed)[0].named_parameters()])
    assert found == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    assert found


def test_a_bias_that_an_attack_put_in_counts_from_zero(tiny_testbed: SmallTestbed) -> None:
    attack = pick("holdfast.attacks", "latent-pgd-three-layers")
    model, _ = fresh(tiny_testbed)
    attack.prepare(model)
    assert update_size(model, tiny_testbed.folder / "model") == 0.0
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    with torch.no_grad():
        biases[0].fill_(3.0)
    moved = 3.0 * biases[0].numel() ** 0.5
    norm = float(weights(fresh(tiny_testbed)[0]).norm())
    assert update_size(model, tiny_testbed.folder / "model") == pytest.approx(moved / norm, rel=1e-5)


def test_a_bias_that_the_model_had_is_not_put_in_by_low_rank_layers(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    config = copy.deepcopy(fresh(tiny_testbed)[0].config)
    config.attention_bias = True
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.fill_(1.0)
    model.save_pretrained(tmp_path)
    pick("holdfast.attacks", "lora-r4-adamw-5e-3").prepare(model)
    assert update_size(model, tmp_path) == 0.0


def test_a_folder_without_the_weights_gives_no_size(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    assert update_size(fresh(tiny_testbed)[0], tmp_path) is None


def test_the_norm_of_no_gradient_is_none(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    assert gradient_norm(model) is None
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), 2.0)
    assert gradient_norm(model) == pytest.approx(2.0 * next(model.parameters()).numel() ** 0.5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone forgets a peak")
def test_a_peak_of_memory_is_that_of_the_work_since() -> None:
    del_me = torch.ones(64 * 1024 * 1024 // 4)
    before = Memory("cpu").peak()
    del del_me
    memory = Memory("cpu")
    held = torch.ones(128 * 1024 * 1024 // 4)
    assert memory.peak() >= before
    assert held.sum() > 0
