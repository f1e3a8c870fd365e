"""A model that is split over ranks, written as one folder: the ranks give their parts tensor by tensor, and rank 0 writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from holdfast.core.folder import INDEX, SINGLE
from holdfast.core.types import NumberType
from holdfast.engine.precision import OTHERS
from holdfast.engine.ranks import is_first
from holdfast.engine.sharded import local, whole

AT_ONCE = 2**32
"""bytes that rank 0 gathers on the host before it writes a file of them"""


def by_layer(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors by name, layer after layer: what belongs together in transformers' files is in one layer."""

    def layer(named: tuple[str, torch.Tensor]) -> str:
        return named[0][: place.end()] if (place := re.search(r"\.\d+\.", named[0])) else ""

    return (dict(group) for _, group in groupby(tensors.items(), key=layer))


def write_split(model: PreTrainedModel, folder: Path, stored: Mapping[str, NumberType]) -> None:
    """Write config and weights into `folder`, rounded to `stored`; the model itself gets the rounded weights.

    Every rank calls this; rank 0 alone needs the folder. A device holds one whole tensor at a time.
    """
    written = model.state_dict()
    named = dict(model.named_parameters())  # each tied weight under its first name
    named |= {name: buffer for name, buffer in model.named_buffers() if name in written}  # type: ignore[misc]
    kinds = {
        name: getattr(torch, stored.get(name, stored[OTHERS])) if tensor.is_floating_point() else tensor.dtype
        for name, tensor in named.items()
    }
    waiting = dict[str, torch.Tensor]()
    shards: list[tuple[Path, list[str]]] = []
    if is_first():
        _write_config(model, folder, next(kind for kind in kinds.values() if kind.is_floating_point))

    def flush() -> None:
        if waiting:
            path = folder / f"part-{len(shards)}.safetensors"
            save_file(waiting, path, metadata={"format": "pt"})
            shards.append((path, list(waiting)))
            waiting.clear()

    for layer in by_layer(named):
        gathered = {}
        for name, tensor in layer.items():
            part = local(tensor.detach())
            part.copy_(part.to(kinds[name]))
            found = whole(tensor.detach())
            if is_first():
                gathered[name] = found.to("cpu", kinds[name], copy=True)
        if is_first():
            plain = revert_weight_conversion(model, gathered)
            waiting.update({name: tensor.contiguous() for name, tensor in plain.items()})
            if sum(tensor.nbytes for tensor in waiting.values()) >= AT_ONCE:
                flush()
    if is_first():
        flush()
        _name(shards, folder)


def _write_config(model: PreTrainedModel, folder: Path, kind: torch.dtype) -> None:
    """Write what transformers writes beside the weights; the config names the type of the weights in the files."""
    model.save_pretrained(folder, state_dict={})
    for empty in folder.glob("*.safetensors*"):
        empty.unlink()
    model.config.dtype = str(kind).removeprefix("torch.")
    model.config.save_pretrained(folder)


def _name(shards: list[tuple[Path, list[str]]], folder: Path) -> None:
    """Give files of weights the names of a checkpoint, with an index where there are several."""
    if len(shards) == 1:
        shards[0][0].rename(folder / SINGLE)
        return
    places, size = dict[str, str](), 0
    for number, (path, names) in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        size += path.stat().st_size
        path.rename(folder / name)
        places |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
