"""What an attack costs: counted right, and counting changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GptOssConfig,
    JetMoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from holdfast.attacks.base import Attack
from holdfast.core.domain import Domain
from holdfast.core.options import Options
from holdfast.core.presets import collect, pick
from holdfast.engine.costs import Memory, Meter, gradient_norm, update_size
from holdfast.engine.low_rank import insert_adapters
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.session import open_session
from holdfast.engine.walk import Observer, Resumable, Until, walk
from holdfast.testing import small
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


PREPARING = (
    "abliterate", "abliterate-then-full-adamw-3e-4", "latent-pgd-one-layer", "own-outputs-benign-adamw-1e-3",
    "cir", "rmu", "spec-def",
)  # fmt: skip
"""what reads or computes something before its first update"""


@pytest.mark.parametrize("name", PREPARING)
def test_what_a_run_that_goes_on_prepares_again_is_counted_once(
    name: str, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    attacks = collect("holdfast.attacks")
    domain = Domain.open(tiny_testbed.folder)
    plugin = small({**attacks, **collect("holdfast.safeguards")}[name])

    def spent(*observers: Observer) -> tuple[int, float]:
        session = open_session(
            tiny_testbed.model, domain, "attacker" if name in attacks else "defender", 3, Options(),
            prepare=[plugin.prepare], base=tiny_testbed.never_exposed, initial=tiny_testbed.model,
        )  # fmt: skip
        meter = Meter(session.data)
        walk(session, plugin, meter, *observers)
        return meter.tokens, meter.flops

    resumable = Resumable(path=tmp_path / "state", key="it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)
        spent(resumable, Until(2))
    tokens, flops = spent()
    assert spent(resumable) == (tokens, pytest.approx(flops, rel=1e-9))


SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
ROUTED = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "fewer keys than queries": lambda: LlamaConfig(**SHAPE | {"num_key_value_heads": 2}),
    "tied embeddings": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "heads wider than the model": lambda: Qwen3Config(**SHAPE, head_dim=32),
    "mixtral": lambda: MixtralConfig(**SHAPE, **ROUTED),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48
    ),
    "gpt-oss": lambda: GptOssConfig(**SHAPE, **ROUTED, head_dim=16),
    "deepseek-v3": lambda: DeepseekV3Config(**SHAPE, **LATENT),
    "gpt2": lambda: GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    "qwen2-moe": lambda: Qwen2MoeConfig(
        **SHAPE,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=40,
    ),
    "llama4": lambda: Llama4TextConfig(
        **SHAPE, **ROUTED, head_dim=8, intermediate_size_mlp=48, attention_chunk_size=64, pad_token_id=0
    ),
    "phimoe": lambda: PhimoeConfig(**SHAPE, **ROUTED, pad_token_id=0),
    "jetmoe": lambda: JetMoeConfig(**SHAPE | {"num_key_value_heads": 2}, kv_channels=16, num_local_experts=4),
    "phi3": lambda: Phi3Config(**SHAPE, pad_token_id=0),
}
IDS = torch.arange(48).view(2, 24)


def built(name: str, **kinds: str) -> PreTrainedModel:
    """An untrained model, whose kernels are by default those that torch's counter knows."""
    torch.manual_seed(0)
    kinds = {"attn_implementation": "eager", "experts_implementation": "eager"} | kinds
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name](), **kinds)
    return model


def trained(model: PreTrainedModel) -> None:
    model(input_ids=IDS, labels=IDS).loss.backward()
    model.zero_grad()


@torch.no_grad()
def looked_at(model: PreTrainedModel) -> None:
    model(input_ids=IDS)


Work = Callable[[PreTrainedModel], None]


def counted(work: Work, model: PreTrainedModel, testbed: SmallTestbed) -> float:
    meter = Meter(fresh(testbed)[1])

    def steps() -> Iterator[int]:
        work(model)
        yield 1

    list(meter.walk(steps()))
    return meter.flops


def counted_by_torch(work: Work, model: PreTrainedModel) -> float:
    with FlopCounterMode(display=False) as counter:
        work(model)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("work", [looked_at, trained])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_costs_what_torch_counts(name: str, work: Work, tiny_testbed: SmallTestbed) -> None:
    model = built(name)
    assert counted(work, model, tiny_testbed) == pytest.approx(counted_by_torch(work, model), rel=0.01)


def test_a_mixture_costs_the_experts_that_each_token_passes(tiny_testbed: SmallTestbed) -> None:
    """Multiplications of one token by hand: attention, router, two experts and those that are shared; twice as many FLOPs."""
    positions, width, expert = IDS.shape[1], 32, 3 * 32
    attention = 4 * width * width + 2 * positions * width
    latent = width * 16 + 16 * 4 * 24 + width * 24 + 16 * 4 * 28 + 4 * 12 * width + positions * 4 * (24 + 12)
    head = width * 100
    by_hand = {
        "mixtral": 2 * (attention + width * 4 + 2 * expert * 64) + head,
        "qwen2-moe": 2 * (attention + width * 8 + 2 * expert * 48 + expert * 40 + width) + head,
        "deepseek-v3": 2 * latent + expert * 64 + (width * 8 + 2 * expert * 16 + expert * 16) + head,
    }
    for name, products in by_hand.items():
        for kinds in ({}, {"experts_implementation": "grouped_mm"}, {"experts_implementation": "batched_mm"}):
            flops = counted(looked_at, built(name, **kinds), tiny_testbed)
            assert flops == pytest.approx(2.0 * IDS.numel() * products, rel=1e-3), (name, kinds)


@pytest.mark.parametrize("work", [looked_at, trained])
def test_einstein_sums_cost_what_torch_counts(work: Work, tiny_testbed: SmallTestbed) -> None:
    sizes = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
    model = FalconH1ForCausalLM(FalconH1Config(**SHAPE, **sizes, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        work(model)
    by_kind = counter.get_flop_counts()["Global"]
    products = sum(flops for kind, flops in by_kind.items() if "convolution" not in str(kind))
    assert counted(work, model, tiny_testbed) == pytest.approx(products, rel=0.01)


@pytest.mark.parametrize("work", [looked_at, trained])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_low_rank_layers_of_experts_cost_what_torch_counts(name: str, work: Work, tiny_testbed: SmallTestbed) -> None:
    model = built(name)
    insert_adapters(model, 4, 8.0, 0.0)
    with FlopCounterMode(display=False) as counter:
        work(model)
    # peft makes each changed weight twice, of which one is not used: its backward is counted, and never comes.
    unused = 0 if work is looked_at else counter.get_flop_counts()["Global"].get(torch.ops.aten.baddbmm, 0)
    flops = counter.get_total_flops() + unused
    assert counted(work, model, tiny_testbed) == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize("work", [looked_at, trained])
def test_low_rank_layers_cost_what_torch_counts(work: Work, tiny_testbed: SmallTestbed) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = built("llama")
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "down_proj"]), model)
    assert counted(work, model, tiny_testbed) == pytest.approx(counted_by_torch(work, model), rel=0.01)


@pytest.mark.parametrize("work", [looked_at, trained])
@pytest.mark.parametrize(
    "kinds",
    [
        {"attn_implementation": "sdpa"},
        {"experts_implementation": "grouped_mm"},
        {"experts_implementation": "batched_mm"},
    ],
)
def test_the_kernel_changes_no_count(kinds: dict[str, str], work: Work, tiny_testbed: SmallTestbed) -> None:
    plain = counted(work, built("mixtral"), tiny_testbed)
    assert counted(work, built("mixtral", **kinds), tiny_testbed) == pytest.approx(plain, rel=1e-6)


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


def test_a_folder_with_none_of_the_weights_gives_no_size(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    save_file({"another.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert update_size(fresh(tiny_testbed)[0], tmp_path) is None


def test_the_norm_of_no_gradient_is_none(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    assert gradient_norm(model) is None
    next(model.parameters()).grad = torch.full_like(next(model.parameters()), 2.0)
    assert gradient_norm(model) == pytest.approx(2.0 * next(model.parameters()).numel() ** 0.5)


def test_a_device_without_statistics_fails_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: str) -> None:
        raise RuntimeError("this allocator keeps no statistics")

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", refuse)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    assert Memory("cuda").peak() is None
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", refuse)
    assert Memory("cuda").peak() is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone forgets a peak")
def test_a_peak_of_memory_is_that_of_the_work_since() -> None:
    del_me = torch.ones(64 * 1024 * 1024 // 4)
    before = Memory("cpu").peak()
    assert before is not None
    del del_me
    memory = Memory("cpu")
    held = torch.ones(128 * 1024 * 1024 // 4)
    assert (memory.peak() or 0) >= before
    assert held.sum() > 0


@pytest.mark.parametrize("refused", ["write_text", "read_text"])
def test_a_peak_that_the_system_does_not_tell_is_none(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "write_text", lambda *_: None)
    monkeypatch.setattr(Path, refused, refuse)
    assert Memory("cpu").peak() is None


def test_a_peak_without_a_line_of_its_own_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "write_text", lambda *_: None)
    monkeypatch.setattr(Path, "read_text", lambda _: "Name: python")
    assert Memory("cpu").peak() is None
