"""What a model is made of, held against what a forward pass does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    DbrxConfig,
    DbrxForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers, hidden_units, linear_maps, mlp_writers, residual_writers
from holdfast.engine.low_rank import adapter_changes, insert_adapters, merge_adapters
from holdfast.engine.stream import residual_stream
from tests.engine.test_costs import CONFIGS, IDS, SHAPE, built
from tests.families import small

SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def opt() -> PreTrainedModel:
    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32))


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=48))


def falcon_h1() -> PreTrainedModel:
    """Attention beside a state-space layer."""
    sizes = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
    return FalconH1ForCausalLM(FalconH1Config(**SHAPE, **sizes, num_experts=None))


def dbrx() -> PreTrainedModel:
    """Experts in matrices one below the other, and attention in a part that is named after norms."""
    attention = {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}
    experts = {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 100}
    return DbrxForCausalLM(DbrxConfig(**sizes, attn_config=attention, ffn_config=experts))


OTHERS = {"opt": opt, "gpt-neox": neox, "falcon-h1": falcon_h1, "dbrx": dbrx}
FAMILIES = [*CONFIGS, *OTHERS]


def made(family: str) -> PreTrainedModel:
    if family in CONFIGS:
        return built(family).train(False)
    torch.manual_seed(0)
    return OTHERS[family]().train(False)


class Products(TorchFunctionMode):
    """What a forward pass multiplies: the parameter's name, and the factor's rows and columns as outputs and inputs."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._names = {weight.untyped_storage().data_ptr(): name for name, weight in model.named_parameters()}
        self.seen: dict[str, tuple[int, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        places = {"linear": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}.get(name, (0, 1))
        if name in ("linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"):
            for side, place in enumerate(places):
                weight = self._names.get(args[place].untyped_storage().data_ptr())
                if weight is not None:
                    rows, columns = args[place].shape[-2:]
                    self.seen[weight] = (columns, rows) if side and name != "linear" else (rows, columns)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_maps_are_what_a_forward_pass_multiplies_with_outputs_first(family: str) -> None:
    model = made(family)
    with Products(model) as products, torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    head = {name for name, weight in model.named_parameters() if weight is model.get_output_embeddings().weight}
    maps = {linear.name: tuple(linear.matrices(linear.weight).shape[-2:]) for linear in linear_maps(model)}
    assert maps == {name: shape for name, shape in products.seen.items() if name not in head}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_writers_write_is_all_that_is_added_to_the_residual_stream(family: str) -> None:
    model = made(family)

    def outputs() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack(residual_stream(model, IDS)[1])

    writers = [writer for layer in residual_writers(model) for writer in layer]
    for writer in writers:
        for tensor in (writer.weight, writer.bias):
            if tensor is not None:
                torch.nn.init.zeros_(tensor)
    silent = outputs()
    entering: list[torch.Tensor] = []
    layer = decoder_layers(model)[0]
    layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    outputs()
    assert all(torch.equal(output, entering[0]) for output in silent)
    for writer in writers:
        torch.nn.init.ones_(writer.weight)
        assert not torch.equal(outputs(), silent), writer.name
        torch.nn.init.zeros_(writer.weight)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("mixtral", ["mlp.experts.down_proj"]),
        ("qwen2-moe", ["mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight"]),
        ("deepseek-v3", ["mlp.experts.down_proj", "mlp.shared_experts.down_proj.weight"]),
        ("phimoe", ["mlp.experts.down_proj"]),
        ("gpt2", ["mlp.c_proj.weight"]),
        ("phi3", ["mlp.down_proj.weight"]),
        ("opt", ["fc2.weight"]),
        ("falcon-h1", ["feed_forward.down_proj.weight"]),
    ],
)
def test_the_writers_of_an_mlp_are_those_of_all_experts_and_no_router(family: str, names: list[str]) -> None:
    [writers] = mlp_writers(made(family), [1])
    assert [writer.name.partition(".1.")[2] for writer in writers] == names


def test_attention_is_no_norm_that_is_named_after_it_and_no_map_that_is_made_last() -> None:
    assert [writer.name for writer in residual_writers(made("gpt-neox"))[0]] == [
        "gpt_neox.layers.0.attention.dense.weight",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
    ]
    assert [writer.name for writer in residual_writers(made("phi3"))[0]] == [
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ]


def test_a_hybrid_layer_writes_by_both_of_its_mixers() -> None:
    names = [writer.name.rpartition("layers.0.")[2] for writer in residual_writers(made("falcon-h1"))[0]]
    assert sorted(names) == ["feed_forward.down_proj.weight", "mamba.out_proj.weight", "self_attn.o_proj.weight"]


def test_a_layer_whose_writer_has_no_known_name_is_refused() -> None:
    model: Any = made("llama")
    for layer in model.model.layers:
        layer.self_attn.answer = layer.self_attn._modules.pop("o_proj")
    with pytest.raises(HoldfastError, match="nothing tells what self_attn of a LlamaDecoderLayer writes into"):
        residual_writers(model)


def test_a_stack_of_unknown_matrices_is_refused() -> None:
    model: Any = made("llama")
    model.model.layers[0].mlp.mixing = torch.nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(HoldfastError, match=r"nothing tells what model.layers.0.mlp.mixing of a LlamaForCausalLM is"):
        linear_maps(model)


def test_experts_whose_sizes_do_not_tell_inputs_from_outputs_are_refused() -> None:
    model: Any = made("llama4")
    experts = model.model.layers[0].feed_forward.experts
    experts.down_proj = torch.nn.Parameter(torch.zeros(4, 32, 32))
    with pytest.raises(
        HoldfastError, match=r"experts\.down_proj of a Llama4ForCausalLM has its inputs or its outputs first"
    ):
        linear_maps(model)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_weights_in_a_quantised_type_are_refused(dtype: torch.dtype) -> None:
    model: Any = made("llama")
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(
        HoldfastError, match=r"up_proj\.weight of a LlamaForCausalLM is kept as (float8|uint8).*dequantised"
    ):
        linear_maps(model)


def test_a_weight_that_two_layers_share_is_one_map() -> None:
    model: Any = made("llama")
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    assert len(linear_maps(model)) == 2 * 7 - 1


def test_rewriting_hands_out_each_expert_with_outputs_first() -> None:
    model: Any = made("gpt-oss")
    [linear] = [linear for linear in linear_maps(model) if linear.name == "model.layers.0.mlp.experts.gate_up_proj"]
    before, shapes = linear.weight.detach().clone(), []

    def change(matrix: torch.Tensor, number: int) -> torch.Tensor:
        shapes.append(tuple(matrix.shape))
        return matrix * number

    linear.rewrite(change, range(4))
    assert shapes == [(128, 32)] * 4
    assert torch.equal(linear.weight, before * torch.arange(4.0)[:, None, None])


@pytest.mark.parametrize(
    "family", ["mixtral", "gpt-oss", "llama4", "jetmoe", "dbrx", "qwen2-moe", "phi3", "gpt2", "opt"]
)
def test_a_hidden_unit_is_read_and_written_by_the_rows_and_the_column_that_belong_together(family: str) -> None:
    model = made(family)
    for units in hidden_units(model):
        kept = torch.arange(units.count) % 3 > 0
        for up in units.up:
            up.rewrite(lambda rows, kept=kept, up=up, units=units: rows * units.by_row(up, kept)[:, None])
    with torch.no_grad():
        before = model(input_ids=IDS, use_cache=False).logits
        for units in hidden_units(model):
            gone = torch.arange(units.count) % 3 == 0
            units.down.rewrite(lambda columns, gone=gone: torch.where(gone, torch.randn_like(columns), columns))
        after = model(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(before, after, atol=1e-6)
    some = hidden_units(model)[0]
    sizes = some.by_unit(some.up[0], some.up[0].matrices(some.up[0].weight).square().sum(-1)).sum(-1)
    assert (sizes.reshape(-1, some.count)[:, ::3] == 0).all()
    assert (sizes > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("family", small.FAMILIES)
def test_every_family_is_known_whole_or_refused(family: str) -> None:
    """Maps, writers and LoRA of each family that transformers has, held against its forward pass."""
    try:
        model = small.build(family, 64)
        with Products(model) as products, torch.no_grad():
            before = model(input_ids=WORDS, use_cache=False).logits
    except Exception as error:  # a family that cannot be built or run small is no matter of anatomy
        pytest.skip(f"{type(error).__name__}: {error}"[:200])
    try:
        maps = {linear.name: linear for linear in linear_maps(model)}
    except HoldfastError:
        assert family in NOT_KNOWN
        return
    head = model.get_output_embeddings()
    head_weights = set() if head is None else {id(weight) for weight in head.parameters()}
    seen = {n: s for n, s in products.seen.items() if id(model.get_parameter(n)) not in head_weights}
    assert seen.keys() <= maps.keys()
    for name, shape in seen.items():
        if name.endswith("o_a_proj.weight"):  # of groups, one below the other
            continue
        assert tuple(maps[name].matrices(maps[name].weight).shape[-2:]) == shape
    try:
        insert_adapters(model, 2, 4.0, 0.0)
    except HoldfastError:
        assert family in NO_LORA
        return
    model.train(False)
    assert adapter_changes(model).keys() == maps.keys()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
        adapted = model(input_ids=WORDS, use_cache=False).logits
        merge_adapters(model)
        assert torch.allclose(model(input_ids=WORDS, use_cache=False).logits, adapted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-4)


WORDS = IDS + 3
"""Tokens after those that pad, start and end a text."""

NOT_KNOWN = {"xlnet"}
"""Families whose linear maps no name tells."""

NO_LORA = {
    *(
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "granitemoehybrid",
        "jamba",
        "mamba",
        "mamba2",
        "nemotron_h",
        "zamba",
        "zamba2",
    ),
    *("dbrx", "gemma3", "longcat_flash", "phi4_multimodal"),
}
"""Families in which LoRA would not reach every use of a weight."""


@pytest.mark.slow
@pytest.mark.parametrize("family", small.FAMILIES)
def test_nothing_but_the_writers_adds_to_the_stream_of_any_family(family: str) -> None:
    try:
        model = small.build(family, 64)
        layer = decoder_layers(model)[0]
        entering: list[torch.Tensor] = []
        layer.register_forward_pre_hook(
            lambda _, inputs, named: entering.append(inputs[0] if inputs else named["hidden_states"]), with_kwargs=True
        )
        with torch.no_grad():
            model(input_ids=WORDS, use_cache=False)
        writers = [writer for layer in residual_writers(model) for writer in layer]
    except Exception as error:  # refused, or as above
        pytest.skip(f"{type(error).__name__}: {error}"[:200])
    if not entering or family in OTHER_STREAMS:
        pytest.skip("its stream is not a sum of what its text layers write")
    for writer in writers:
        for tensor in (writer.weight, writer.bias):
            if tensor is not None:
                torch.nn.init.zeros_(tensor)
    with torch.no_grad():
        outputs = residual_stream(model, WORDS)[1]
    for output in outputs:  # a family may scale the stream
        cosine = torch.nn.functional.cosine_similarity(output, entering[-1], dim=-1)
        assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-4) or not output.any()


OTHER_STREAMS = {
    *("bart", "blenderbot-small", "marian", "minimax", "mvp", "openai-gpt", "plbart", "trocr"),  # normed after each sum
    *("cpmant", "inkling2_text"),  # has positions of a prompt besides, weighs the states of earlier layers anew
}
