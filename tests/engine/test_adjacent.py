"""Adjacent linear maps: bases change, the function does not, and balance forgets which basis the weights came in."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from holdfast.attacks.reparameterise import Reparameterise
from holdfast.core.types import HoldfastError
from holdfast.engine.adjacent import Adjacent, adjacent_maps, check_adjacent, check_function, fold_norms
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from holdfast.safeguards.spec_def import SpecDef
from tests.conftest import SmallTestbed

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
IDS = torch.arange(20).view(2, 10)


def made(kind: str) -> PreTrainedModel:
    """A model with grouped heads, of an odd head size, whose norms and biases are not those of a fresh one."""
    torch.manual_seed(3)
    model: PreTrainedModel = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
        "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE)),
    }[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        held: torch.Tensor = model(input_ids=IDS).logits
    return held


every_kind = pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma"])


@every_kind
def test_another_basis_is_the_same_function(kind: str) -> None:
    model = made(kind)
    before, old = logits(model), copy.deepcopy(model)
    for pair in adjacent_maps(model):
        basis = torch.randn(len(pair.written()), pair.block, pair.block, dtype=torch.float64)
        pair.rebase(basis, torch.linalg.inv(basis))
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)
    assert len(adjacent_maps(model)) == 4
    for name in ("v_proj", "o_proj", "up_proj", "down_proj"):
        pairs = [dict(held.named_parameters()) for held in (model, old)]
        moved = [key for key in pairs[0] if name in key and torch.equal(pairs[0][key], pairs[1][key])]
        assert all("bias" in key and name in ("o_proj", "down_proj") for key in moved)


@every_kind
def test_folded_norms_are_plain_and_the_function_stays(kind: str) -> None:
    model = made(kind)
    before = logits(model)
    fold_norms(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    plain = 0.0 if kind == "gemma" else 1.0
    for layer in model.model.layers:
        assert torch.equal(layer.input_layernorm.weight, torch.full((24,), plain))
        assert torch.equal(layer.post_attention_layernorm.weight, torch.full((24,), plain))


@settings(max_examples=30, deadline=None)
@given(block=st.sampled_from([1, 3]), readers=st.integers(1, 3), seed=st.integers(0, 99), spread=st.floats(0, 4))
def test_balanced_maps_share_a_diagonal_gram_matrix_whichever_basis_they_came_in(
    block: int, readers: int, seed: int, spread: float
) -> None:
    torch.manual_seed(seed)
    count = 4
    here = Adjacent(nn.Linear(7, count * block), nn.Linear(readers * count * block, 5), block)
    there = copy.deepcopy(here)
    turn = torch.linalg.qr(torch.randn(count, block, block, dtype=torch.float64))[0]
    scale = 10 ** (spread * torch.rand(count, block, dtype=torch.float64))
    there.rebase(scale[..., None] * turn, turn.mT / scale[..., None, :])
    for pair in (here, there):
        product = pair.read() @ pair.written()
        pair.balance()
        torch.testing.assert_close(pair.read() @ pair.written(), product, rtol=1e-3, atol=1e-5)
        grams = pair.written() @ pair.written().mT, pair.read().mT @ pair.read()
        torch.testing.assert_close(*grams, rtol=1e-3, atol=1e-5)
        singular = torch.linalg.svdvals(product)[:, :block].flip(-1)
        torch.testing.assert_close(grams[0], torch.diag_embed(singular), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(here.written().abs(), there.written().abs(), rtol=1e-2, atol=1e-3)


def test_units_that_are_never_written_or_read_stay_finite() -> None:
    pair = Adjacent(nn.Linear(7, 6), nn.Linear(6, 5), 1)
    with torch.no_grad():
        pair.first.weight[:2] = 0
        pair.second.weight[:, 1:3] = 0
    product = pair.read() @ pair.written()
    pair.balance()
    assert all(torch.isfinite(held).all() for held in (*pair.first.parameters(), *pair.second.parameters()))
    torch.testing.assert_close(pair.read() @ pair.written(), product)


def test_an_architecture_without_such_maps_is_named() -> None:
    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6
    )
    with pytest.raises(HoldfastError, match="GPTNeoXForCausalLM has no value and output projections"):
        adjacent_maps(GPTNeoXForCausalLM(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gate_between_value_and_output_is_seen_in_every_precision(dtype: torch.dtype) -> None:
    """Qwen3-Next gates what attention gives, by name it looks like Llama; in half precision a turn would hide the gate."""
    config = Qwen3NextConfig(
        **SHAPE, layer_types=["full_attention"] * 2, num_experts=0, linear_num_key_heads=2, linear_num_value_heads=2
    )
    model = Qwen3NextForCausalLM(config).to(dtype).train(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HoldfastError, match="moved the logits of this Qwen3NextForCausalLM"):
        check_adjacent(model, adjacent_maps(model), IDS)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adjacent_maps_pass_the_check_and_stay_as_they_are(dtype: torch.dtype) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(dtype).train(False)
    before = copy.deepcopy(model.state_dict())
    check_adjacent(model, adjacent_maps(model), IDS)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_logits_that_are_no_numbers_did_not_stay() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    logits = torch.randn(2, 3, 4)
    check_function(model, logits, logits.clone())
    with pytest.raises(HoldfastError, match="moved the logits"):
        check_function(model, logits, logits * torch.nan)


@pytest.mark.parametrize("plugin", [Reparameterise(), SpecDef()])
def test_who_changes_bases_refuses_what_only_looks_adjacent(
    plugin: Reparameterise | SpecDef, tiny_testbed: SmallTestbed
) -> None:
    config = Qwen3NextConfig(
        **{**SHAPE, "vocab_size": 1024}, layer_types=["full_attention"] * 2, num_experts=0,
        linear_num_key_heads=2, linear_num_value_heads=2,
    )  # fmt: skip
    model, tokenizer = Qwen3NextForCausalLM(config).train(False), tiny_testbed.model.load_tokenizer()
    view = Data.attacker if isinstance(plugin, Reparameterise) else Data.defender
    run = Run(0, lambda: copy.deepcopy(model))
    with pytest.raises(HoldfastError, match="must leave the function of a model as it is"):
        list(plugin.steps(model, view(tiny_testbed.domain, tokenizer), run))
