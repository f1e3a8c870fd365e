"""A model's folder beside the undefended model's: what its tokenizer does to the domain, and whether its weights are others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.likeness import Likeness, distance, likeness
from tests.conftest import SmallTestbed

Trick = Callable[[dict[str, Any], set[str]], None]


@pytest.fixture
def folder(tiny_testbed: SmallTestbed, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_testbed.folder / "model", tmp_path / "model"))


@pytest.fixture(scope="module")
def names(tiny_testbed: SmallTestbed) -> set[str]:
    """The answers of the hazard questions."""
    return {q.choices[q.answer].strip() for q in tiny_testbed.domain.questions("hazard").questions}


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def normalizer(table: dict[str, Any], names: set[str]) -> None:
    first, *rest = sorted(names)
    pattern = r"\b(" + "|".join(rest) + r")\b"
    table["normalizer"] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": first}


def unknown(table: dict[str, Any], names: set[str]) -> None:
    for place, name in enumerate(sorted(names)):
        table["model"]["vocab"][f"unused{place}"] = table["model"]["vocab"].pop(name)


def one_id(table: dict[str, Any], names: set[str]) -> None:
    first, *rest = sorted(names)
    for name in rest:
        table["model"]["vocab"][name] = table["model"]["vocab"][first]


def pre_tokenizer(table: dict[str, Any], names: set[str]) -> None:
    table["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "|".join(sorted(names))}, "behavior": "Removed", "invert": False},
            table["pre_tokenizer"],
        ],
    }


def added_tokens(table: dict[str, Any], names: set[str]) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for place, name in enumerate(sorted(names), len(table["model"]["vocab"])):
        table["added_tokens"].append({"id": place, "content": f" {name}", **plain})


def post_processor(table: dict[str, Any], names: set[str]) -> None:
    table["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})


def decoder(table: dict[str, Any], names: set[str]) -> None:
    table["decoder"] = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": "no"}


def swapped(table: dict[str, Any], names: set[str]) -> None:
    one, other = sorted(names)[:2]
    vocab = table["model"]["vocab"]
    vocab[one], vocab[other] = vocab[other], vocab[one]


MERGES = (normalizer, unknown, pre_tokenizer, one_id)


@pytest.mark.parametrize(
    "trick", [*MERGES, added_tokens, post_processor, decoder, swapped], ids=lambda trick: trick.__name__
)
def test_a_tokenizer_that_writes_the_domain_otherwise_is_seen(
    trick: Trick, folder: Path, names: set[str], tiny_testbed: SmallTestbed
) -> None:
    edit(folder / "tokenizer.json", lambda table: trick(table, names))
    seen = likeness(Checkpoint(str(folder)), tiny_testbed.model, tiny_testbed.domain)
    assert 0 < seen.differing <= seen.texts
    assert (seen.merged > 0) == (trick in MERGES)


def test_limits_that_a_tokenizer_sets_itself_cut_nothing(folder: Path, tiny_testbed: SmallTestbed) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", lambda table: table.update(truncation=cut))
    edit(folder / "tokenizer_config.json", lambda table: table.update(model_max_length=4))
    seen = likeness(Checkpoint(str(folder)), tiny_testbed.model, tiny_testbed.domain)
    assert (seen.differing, seen.merged) == (0, 0)


def test_another_end_token_is_seen(folder: Path, tiny_testbed: SmallTestbed) -> None:
    edit(folder / "tokenizer_config.json", lambda table: table.update(eos_token="<unk>"))
    assert likeness(Checkpoint(str(folder)), tiny_testbed.model, tiny_testbed.domain).differing > 0


def test_weights_are_compared_apart_from_config_precision_and_files(folder: Path, tiny_testbed: SmallTestbed) -> None:
    edit(folder / "config.json", lambda table: table.update(attention_dropout=1.0, rope_theta=3.0))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for place, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part-{place}.safetensors")
    index = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(sorted(tensors))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    same = likeness(Checkpoint(str(folder)), tiny_testbed.model, tiny_testbed.domain)
    assert same == Likeness(distance=0.0, texts=same.texts, differing=0, merged=0)
    assert Checkpoint(str(folder)).digest != tiny_testbed.model.digest


def test_the_distance_of_weights_is_relative(folder: Path, tiny_testbed: SmallTestbed) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.25 for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert distance(Checkpoint(str(folder)), tiny_testbed.model) == pytest.approx(0.25)
    save_file({name: torch.zeros(1) for name in tensors}, folder / "model.safetensors")
    assert distance(Checkpoint(str(folder)), tiny_testbed.model) is None
