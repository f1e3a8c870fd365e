"""Small models of every family of causal language models that the installed transformers has.

A family's default configuration is taken, and its sizes are made small by the names of its fields: a family that a newer
transformers brings needs no line here. Families whose sizes depend on each other in ways that names do not tell have theirs
written down in `SPECIAL`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_SIZES: Mapping[int, str] = {
    32: (
        "hidden_size d_model n_embd dim embedding_size embedding_dim word_embed_proj_dim "
        "attention_hidden_size lru_width input_embedding_size output_embedding_size hidden_size_global "
        "backbone_hidden_size router_hidden_size emb_dim out_hidden_size adapter_out_dim projector_input_dim "
        "projector_output_dim vision_output_dim"
    ),
    48: (
        "intermediate_size moe_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size "
        "n_inner dff dim_ff d_inner shared_expert_intermediate_size shared_intermediate_size "
        "shared_experts_intermediate_size expert_ffn_hidden_size intermediate_size_mlp "
        "dense_intermediate_size feed_forward_size d_ff moe_shared_expert_intermediate_size"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "attention_heads linear_num_heads swa_num_attention_heads num_encoder_attention_heads "
        "num_decoder_attention_heads n_mamba_heads num_experts num_local_experts n_routed_experts "
        "moe_num_experts index_n_heads mamba_num_heads conv_kernel zero_expert_num linear_num_value_heads "
        "gated_norm_rank"
    ),
    2: (
        "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers num_decoder_layers "
        "num_encoder_layers depth num_key_value_heads num_kv_heads kv_n_heads num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k moe_top_k linear_num_key_heads swa_num_key_value_heads "
        "topk_group n_group num_expert_group num_query_groups mamba_n_groups index_topk_blocks num_blocks "
        "heads_per_ngram"
    ),
    1: "num_shared_experts n_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers num_lstm_layers",
    8: (
        "head_dim attention_head_dim v_head_dim linear_head_dim swa_head_dim kv_channels attention_head_size "
        "d_kv d_head dim_head q_lora_rank kv_lora_rank qk_nope_head_dim o_lora_rank hc_lowrank laurel_rank "
        "adapter_rank rotary_dim index_head_dim linear_key_head_dim linear_value_head_dim "
        "hidden_size_per_layer_input mamba_d_state state_size time_step_rank mamba_dt_rank ssm_state_size "
        "mamba_chunk_size chunk_size sliding_window attention_window_size sliding_window_size "
        "attention_chunk_size index_topk block_size index_block_size d_rel window_size local_attention "
        "conv_kernel_size_ dim_model_base"
    ),
    16: "qk_head_dim",
    64: (
        "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
        "max_target_positions rel_extent original_max_position_embeddings max_source_positions "
        "keep_window_size"
    ),
}
"""Size -> names of the fields that get it."""

SIZES = {name: size for size, names in _SIZES.items() for name in names.split()} | {"qk_rope_head_dim": 8}

VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size")

LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "indexer_types")
"""Fields with a kind for each layer."""

_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2}

SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": _MAMBA,
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "nemotron_h": {"n_groups": 2, "mamba_num_heads": 4, "mamba_head_dim": 16},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_dt_rank": 8,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "qwen4_exp_text": {"num_experts": 4},
    "xlm": {"causal": True},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "big_bird": {"attention_type": "original_full"},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "is_decoder": True},
    "prophetnet": {"num_hidden_layers": None},
}


def build(family: str, words: int, **changes: Any) -> PreTrainedModel:
    """An untrained model of a family with `words` tokens, of which 0 pads, 1 starts and 2 ends a text."""
    torch.manual_seed(0)
    config = small_config(family, words, **changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.tie_weights()  # as it is when it was loaded
    return model.train(False)


def small_config(family: str, words: int, **changes: Any) -> PreTrainedConfig:
    return _small(CONFIG_MAPPING[family], words, {**SPECIAL.get(family, {}), **changes})


def _small(kind: type[PreTrainedConfig], words: int, special: Mapping[str, Any]) -> PreTrainedConfig:
    usual = kind()
    names = {name for name in usual.to_dict() if not _read_only(kind, name)}
    fields: dict[str, Any] = {name: size for name, size in SIZES.items() if name in names and _is_size(usual, name)}
    fields |= {name: words for name in names if name in VOCABULARIES}
    fields |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if "is_decoder" in names:
        fields["is_decoder"] = True
    sizes = usual.to_dict()
    if "num_key_value_heads" in fields and sizes["num_key_value_heads"] == sizes.get("num_attention_heads"):
        fields["num_key_value_heads"] = SIZES["num_attention_heads"]
    kinds = {
        name: list(dict.fromkeys(getattr(usual, name))) for name in LISTS if name in names and getattr(usual, name)
    }
    layers = max([2, *map(len, kinds.values())])
    fields |= {name: layers for name, size in fields.items() if size == 2 and "layer" in name}
    fields |= {name: [*some, *some[-1:] * (layers - len(some))] for name, some in kinds.items()}
    for name in usual.sub_configs:
        if (part := getattr(usual, name, None)) is not None:
            fields[name] = _small(type(part), words, special.get(name, {})).to_dict()
    return kind(**fields | {name: value for name, value in special.items() if name not in usual.sub_configs})


def _is_size(config: PreTrainedConfig, name: str) -> bool:
    value = config.to_dict()[name]
    return isinstance(value, int) and not isinstance(value, bool)


def _read_only(kind: type[PreTrainedConfig], name: str) -> bool:
    found = inspect.getattr_static(kind, name, None)
    return isinstance(found, property) and found.fset is None
