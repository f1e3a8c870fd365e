"""A checkpoint's folder, read without torch: its config, its card, and the files whose weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Required

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from holdfast.core.reading import OPEN, misfit
from holdfast.core.types import HoldfastError

CARD = "holdfast.json"
"""The machine-readable half of a checkpoint's card; the other half is README.md."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights of a small model in one file, and the file that names the shards of a large one."""


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
    try:
        return _json_object(path)
    except ValueError as error:
        raise HoldfastError(f"{path} is not valid JSON ({error}); restore the checkpoint") from error


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
        HoldfastError: there is no config, or there are no such files, or other weights would be loaded than these.
    """
    if (folder / "adapter_config.json").is_file() or "transformers_weights" in read_config(folder):
        raise HoldfastError(
            f"{folder} names other weights beside its own, in adapter_config.json or as transformers_weights in config.json; "
            "merge them and save the model with save_pretrained"
        )
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        raise HoldfastError(
            f"{folder} has no safetensors weights; holdfast never loads pickles: "
            "convert them with save_pretrained(..., safe_serialization=True)"
        )
    try:
        shards = sorted(set(_INDEX.validate_python(_json_object(index))["weight_map"].values()))
    except ValueError as error:
        raise HoldfastError(f"{index} is damaged ({misfit(error)}); restore the checkpoint") from error
    for name in shards:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise HoldfastError(f"{index} names {name}, which is outside its folder; restore the checkpoint")
        if not (folder / name).is_file():
            raise HoldfastError(f"the model in {folder} cannot be loaded: it has no {name}; restore the checkpoint")
    return [index, *(folder / name for name in shards)]


def _json_object(path: Path) -> dict[str, Any]:
    table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict):
        raise ValueError(f"a {type(table).__name__}, not an object")
    return table
