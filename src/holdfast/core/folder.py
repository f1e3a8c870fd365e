"""A checkpoint's folder, read without torch: its config, its card, and the files that are loaded from it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Required

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from holdfast.core.files import file_digest
from holdfast.core.reading import OPEN, line, misfit, parsed_json
from holdfast.core.types import HoldfastError

CARD = "holdfast.json"
"""The machine-readable half of a checkpoint's card; the other half is README.md."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights of a small model in one file, and the file that names the shards of a large one."""

_TOKENIZER = (
    "tokenizer*.json", "*.model", "*.tiktoken", "tekken.json", "vocab*", "merges*.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""The names under which tokenizers keep what they load."""

_COMPANIONS = ("", ".md", ".txt", ".json", ".jinja", ".pdf")
_LEFT = (CARD, "README.md", INDEX, "pytorch_model.bin.index.json", "adapter_config.json", "trainer_state.json")

_ENVIRONMENT = ("is_local", "local_files_only")
"""What transformers writes into a tokenizer's config about the process that loaded the tokenizer."""


@with_config(OPEN)
class _Origin(TypedDict):
    path: str
    digest: str


_Trained = TypedDict("_Trained", {"class": Required[str], "benign_first": float}, total=False)


@with_config(OPEN)
class _Adversary(TypedDict):
    attack: _Trained
    learning_rates: list[float]
    switch: list[float] | None


@with_config(OPEN)
class _Safeguard(TypedDict, total=False):
    adversaries: list[_Adversary]


@with_config(OPEN)
class _Cost(TypedDict, total=False):
    seconds: float
    tokens: float
    flops: float


@with_config(OPEN)
class _Stage(_Cost):
    preset: str
    config: _Safeguard


@with_config(OPEN)
class _Card(_Cost, total=False):
    """The fields of a card that holdfast reads; a card may hold more."""

    key: str
    digest: str
    model: _Origin | str
    base: _Origin
    seed: int | None
    steps: int
    stages: list[_Stage]


@with_config(OPEN)
class _Index(TypedDict):
    weight_map: dict[str, str]


_CARD, _INDEX = TypeAdapter(_Card), TypeAdapter(_Index)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.

    Raises:
        HoldfastError: there is no config, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise HoldfastError(f"{folder} is not a Hugging Face model: it has no config.json")
    return _read_json(path)


def read_card(folder: Path) -> dict[str, Any]:
    """What made the checkpoint, as holdfast wrote it; empty for a model from elsewhere.

    Raises:
        HoldfastError: it is no JSON object, or a field that is read of it has another type.
    """
    path = folder / CARD
    try:
        card = _json_object(path) if path.is_file() else {}
        _CARD.validate_python(card)
        return card
    except ValueError as error:
        raise HoldfastError(f"{path} is damaged ({misfit(error)}); remove it or restore the checkpoint") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that transformers loads: the one of a small model, else an index and the shards that it names.

    Raises:
        HoldfastError: there is no config, or there are no such files, or other weights might be loaded than these.
    """
    if (folder / "adapter_config.json").is_file() or "transformers_weights" in read_config(folder):
        raise HoldfastError(
            f"{folder} names other weights beside its own, in adapter_config.json or as transformers_weights in config.json; "
            "merge them and save the model with save_pretrained"
        )
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise HoldfastError(
            f"{folder} holds two models, {SINGLE} and the shards of {INDEX}, and programs differ in which they load; "
            "remove the stale one"
        )
    if single.is_file():
        return [single]
    if not index.is_file():
        if any(folder.glob("*-of-*.safetensors")):
            raise HoldfastError(
                f"{folder} has shards of weights and no {INDEX}, which names them; restore the checkpoint"
            )
        raise HoldfastError(
            f"{folder} has no safetensors weights; holdfast never loads pickles: "
            "convert them with save_pretrained(..., safe_serialization=True)"
        )
    shards = shard_names(folder)
    for name in shards:
        if not (folder / name).is_file():
            raise HoldfastError(
                f"the model in {folder} cannot be loaded: it has no {line(name)}; restore the checkpoint"
            )
    return [index, *(folder / name for name in shards)]


def shard_names(folder: Path) -> list[str]:
    """The files of weights that the index names; none where there is no index.

    Raises:
        HoldfastError: the index is damaged, or it names what is outside the folder or no safetensors file.
    """
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        shards = sorted(set(_INDEX.validate_python(_json_object(index))["weight_map"].values()))
    except ValueError as error:
        raise HoldfastError(f"{index} is damaged ({misfit(error)}); restore the checkpoint") from error
    for name in shards:
        if _is_outside(name):
            raise HoldfastError(f"{index} names {line(name)}, which is outside its folder; restore the checkpoint")
        if not name.endswith(".safetensors"):  # transformers would unpickle it
            raise HoldfastError(f"{index} names {line(name)}, which is no safetensors file; convert the weights")
    return shards


def generation_settings(folder: Path) -> dict[str, Any]:
    """What `generation_config.json` says beyond the config: an end token of its own, or how to draw tokens.

    Raises:
        HoldfastError: the config or this file is no JSON object.
    """
    config, path = read_config(folder), folder / "generation_config.json"
    settings = _read_json(path) if path.is_file() else {}
    return {
        name: value
        for name, value in settings.items()
        if name not in ("transformers_version", "_from_model_config")
        and not (value is None or value is False or value == config.get(name))
    }


def code_files(folder: Path) -> list[Path]:
    """The files of Python code, where the config or the tokenizer's config names code of the model's own.

    Such code runs only where the user trusts remote code.
    """
    return sorted(folder.rglob("*.py")) if any(_code_references(folder)) else []


def check_code(folder: Path) -> None:
    """Raises:
    HoldfastError: the config names code that is not in the folder, so no digest would cover what runs.
    """
    for reference in _code_references(folder):
        if "--" in reference or _is_outside(reference):
            raise HoldfastError(
                f"{folder} names code outside its folder ({line(reference)}); copy that code into the folder and name it in "
                "auto_map"
            )


def tokenizer_content(folder: Path) -> dict[str, str]:
    """A content hash for each of the tokenizer's files, by name.

    The tokenizer's config counts, since it names the end token and may hold the chat template. What transformers notes there
    about the process that loaded the tokenizer does not.

    Raises:
        HoldfastError: the tokenizer's config is no JSON object, or it names files outside the folder.
    """
    files = sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern) if path.is_file()})
    content = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    config = _tokenizer_config(folder)
    for name in config.get("fast_tokenizer_files") or ():
        if _is_outside(str(name)):
            raise HoldfastError(
                f"the tokenizer in {folder} names {line(str(name))}, which is outside its folder; restore the checkpoint"
            )
    if any(name in config for name in _ENVIRONMENT):
        kept = {name: value for name, value in config.items() if name not in _ENVIRONMENT}
        text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"  # as transformers writes it
        content[_TOKENIZER_CONFIG] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return content


_TOKENIZER_CONFIG = "tokenizer_config.json"


def copy_companions(source: Path, target: Path) -> None:
    """Copy what goes with a model wherever it goes and `target` lacks: licence, use policy, settings of processors, code.

    Weights in other formats, tokenizers, cards, what a trainer leaves and links that lead elsewhere stay behind.
    """
    inside = source.resolve()
    # The hub's cache keeps a snapshot as links into a folder of contents.
    roots = (inside, inside.parent.parent / "blobs") if inside.parent.name == "snapshots" else (inside,)
    beside = [
        path
        for path in sorted(source.iterdir())
        if path.is_file()
        and path.suffix in _COMPANIONS
        and not path.name.startswith(".")
        and path.name not in _LEFT
        and not any(path.match(pattern) for pattern in _TOKENIZER)
    ]
    for path in (*beside, *code_files(source)):
        copied = target / path.relative_to(source)
        if not copied.exists() and any(path.resolve().is_relative_to(root) for root in roots):
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / _TOKENIZER_CONFIG
    return _read_json(path) if path.is_file() else {}


def _code_references(folder: Path) -> Iterator[str]:
    """What `auto_map` names, such as "modeling.Model" or "owner/name--modeling.Model"."""
    for config in (read_config(folder), _tokenizer_config(folder)):
        named = config.get("auto_map") or {}
        for reference in named.values() if isinstance(named, dict) else [named]:
            for name in reference if isinstance(reference, list) else [reference]:
                if name is not None:
                    yield str(name)


def _is_outside(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _json_object(path)
    except ValueError as error:
        raise HoldfastError(f"{path} is not valid JSON ({error}); restore the checkpoint") from error


def _json_object(path: Path) -> dict[str, Any]:
    table = parsed_json(path.read_bytes())
    if not isinstance(table, dict):
        raise ValueError(f"a {type(table).__name__}, not an object")
    return table
