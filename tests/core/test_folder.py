"""Which files of a folder are the model, and what of them an identity covers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.folder import (
    INDEX,
    SINGLE,
    check_code,
    code_files,
    generation_settings,
    tokenizer_content,
    weight_files,
)
from holdfast.core.types import HoldfastError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write(folder: Path, name: str, content: Any = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({} if content is None else content) if path.suffix == ".json" else str(content))
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path, "config.json", {"model_type": "llama", "eos_token_id": 2})
    write(tmp_path, INDEX, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
    for name in SHARDS:
        write(tmp_path, name, name)
    return tmp_path


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in weight_files(folder)]


def test_the_index_says_which_files_are_the_weights(sharded: Path) -> None:
    write(sharded, "consolidated.safetensors")
    write(sharded, "model-00003-of-00003.safetensors")
    assert names(sharded) == [INDEX, *SHARDS]


def stale(folder: Path) -> None:
    write(folder, SINGLE)


def a_missing_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def an_adapter(folder: Path) -> None:
    write(folder, "adapter_config.json")


def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def a_pickle(folder: Path) -> None:
    write(folder, INDEX, {"weight_map": {"a": SHARDS[0], "b": "pytorch_model.bin"}})
    write(folder, "pytorch_model.bin")


def outside(folder: Path) -> None:
    write(folder, INDEX, {"weight_map": {"a": "../elsewhere.safetensors"}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (stale, rf"holds two models, {SINGLE} and the shards of {INDEX}.*; remove the stale one"),
        (a_missing_shard, rf"it has no {SHARDS[1]}; restore the checkpoint"),
        (an_adapter, r"names other weights beside its own, in adapter_config\.json .*; merge them"),
        (no_index, rf"has shards of weights and no {INDEX}, which names them; restore the checkpoint"),
        (a_pickle, r"names pytorch_model\.bin, which is no safetensors file; convert the weights"),
        (outside, r"names \.\./elsewhere\.safetensors, which is outside its folder; restore the checkpoint"),
    ],
)
def test_a_folder_whose_weights_are_not_certain_is_refused(
    change: Callable[[Path], None], says: str, sharded: Path
) -> None:
    change(sharded)
    with pytest.raises(HoldfastError, match=says) as caught:
        weight_files(sharded)
    assert "\n" not in str(caught.value)


def test_settings_of_generation_are_what_the_config_does_not_say_already(sharded: Path) -> None:
    assert generation_settings(sharded) == {}
    written = {"_from_model_config": True, "transformers_version": "5.0", "eos_token_id": 2, "use_cache": None}
    write(sharded, "generation_config.json", {**written, "output_attentions": False})
    assert generation_settings(sharded) == {}
    write(sharded, "generation_config.json", {**written, "eos_token_id": [2, 7], "temperature": 0})
    assert generation_settings(sharded) == {"eos_token_id": [2, 7], "temperature": 0}


def test_code_counts_where_a_config_names_it(sharded: Path) -> None:
    code = [write(sharded, "below/part.py", ""), write(sharded, "modeling.py", "")]
    assert code_files(sharded) == []
    write(sharded, "config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}})
    assert code_files(sharded) == code
    check_code(sharded)
    write(sharded, "config.json", {})
    write(sharded, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["modeling.Slow", None]}})
    assert code_files(sharded) == code


@pytest.mark.parametrize("reference", ["owner/name--modeling.Model", "/elsewhere/modeling.Model", "../modeling.Model"])
def test_code_outside_the_folder_is_refused(reference: str, sharded: Path) -> None:
    write(sharded, "config.json", {"auto_map": {"AutoModelForCausalLM": reference}})
    with pytest.raises(HoldfastError, match=r"names code outside its folder \(.*modeling\.Model\); copy that code"):
        check_code(sharded)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer.5.0.0.json", "spiece.model", "vocab.txt", "qwen.tiktoken", "tekken.json",
        "chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja", "added_tokens.json",
    ],
)  # fmt: skip
def test_every_file_that_a_tokenizer_reads_counts(name: str, tmp_path: Path) -> None:
    write(tmp_path, "config.json")
    before = tokenizer_content(tmp_path)
    write(tmp_path, name, "1")
    assert tokenizer_content(tmp_path).keys() - before.keys() == {name}


def test_the_process_that_loaded_a_tokenizer_is_no_part_of_its_content(tmp_path: Path) -> None:
    written = {"eos_token": "</s>", "unk_token": "ü"}
    for name, process in {
        "none": {},
        "offline": {"is_local": True, "local_files_only": True},
        "online": {"is_local": False, "local_files_only": False},
    }.items():
        path = write(tmp_path / name, "tokenizer_config.json")
        text = json.dumps({**written, **process}, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    content = [tokenizer_content(tmp_path / name) for name in ("none", "offline", "online")]
    assert content[0] == content[1] == content[2]


def test_a_tokenizer_whose_files_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.5.0.0.json"]})
    with pytest.raises(HoldfastError, match=r"tokenizer in .* names \.\./tokenizer\.5\.0\.0\.json, which is outside"):
        tokenizer_content(tmp_path)
