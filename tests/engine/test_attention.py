"""The attention that a config names is the one that the model is loaded with, where a model can be trained with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

from holdfast.engine.attention import chosen_attention, named_attention
from holdfast.engine.checkpoint import Checkpoint
from tests.families.small import build

SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
DEFAULT = {"attn_implementation": None}


def folder_of(model: Any, folder: Path, **changes: Any) -> Path:
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return folder


def loaded_with(folder: Path) -> str:
    return str(Checkpoint(str(folder)).load().config._attn_implementation)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(("positions", "name", "default"), [(64, "sdpa", "eager"), (512, "eager", "sdpa")])
def test_the_attention_that_a_config_names_is_used(
    key: str, positions: int, name: str, default: str, tmp_path: Path
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=positions))
    plain = folder_of(model, tmp_path / "plain")
    named = folder_of(model, tmp_path / "named", **{key: name})
    assert (loaded_with(plain), loaded_with(named)) == (default, name)
    assert Checkpoint(str(plain)).digest != Checkpoint(str(named)).digest


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "kernels-community/x", "evil", 7])
def test_an_attention_that_cannot_be_used_is_passed_over_with_a_word(
    name: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=512))
    folder = folder_of(model, tmp_path / "model", attn_implementation=name)
    for _ in range(2):
        assert loaded_with(folder) == "sdpa"
    (said,) = caplog.messages
    assert f"{folder} names the attention {str(name)!r}, which cannot be used here" in said


def test_a_family_without_the_fused_kernel_loads_where_its_config_names_it(tmp_path: Path) -> None:
    folder = folder_of(build("gpt_oss", 9, max_position_embeddings=512), tmp_path / "model", attn_implementation="sdpa")
    assert loaded_with(folder) == "eager"


def test_names_of_parts_are_found() -> None:
    config = {"attn_implementation": {"": "eager", "vision_config": None}, "text_config": {"_attn_implementation": "x"}}
    assert named_attention(config) == ["eager", "x"]
    assert named_attention({"attn_implementation": None, "hidden_size": 8}) == []


def test_kernels_for_half_precision_on_a_gpu_are_used_there_where_they_are_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def chosen(name: str, device: str, dtype: Any) -> dict[str, Any]:
        return chosen_attention(tmp_path, [name], torch.device(device), dtype, short=False)

    for installed in (False, True):
        check = {"general_availability_check": lambda installed=installed: installed}
        monkeypatch.setitem(FLASH_ATTENTION_COMPATIBILITY_MATRIX, 2, check)
        assert chosen("flash_attention_2", "cuda:0", "bfloat16") == ({} if installed else DEFAULT)
        assert chosen("flash_attention_2", "cuda:0", "float32") == DEFAULT
        assert chosen("flash_attention_2", "cpu", "bfloat16") == DEFAULT
    assert chosen("flash_attention_9", "cuda", "bfloat16") == DEFAULT
    assert chosen("flex_attention", "cuda", "float32") == {}
