"""The state of a run in one file: nested values as safetensors, written tensor by tensor, with a hash at the end.

The file holds whole tensors however many ranks a model is split over, so that a run goes on with any number of them. What torch
has for this (`torch.distributed.checkpoint`) writes its table of contents as a pickle, which nobody should have to load.

safetensors' own writer wants every tensor apart and on the CPU at once: for a model with its optimizer's state a second copy of
three times its weights. Its reader sees a header or a length that does not fit, but no changed bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from holdfast.core.files import atomic_file
from holdfast.core.types import HoldfastError
from holdfast.engine.ranks import agreed, is_first
from holdfast.engine.sharded import whole

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_HASH = "sha256"
"""The last tensor: the hash of all bytes before it."""
_HASH_BYTES = 32
_CHUNK = 2**24


class DamagedState(Exception):
    """A state's file is not as it was written."""


def write_state(path: Path, value: Any, **metadata: str) -> None:
    """Write nested dicts, lists, tuples, numbers and tensors to `path`, all or nothing, readable to the user alone.

    In memory is never more than one tensor that lies on another device or in parts. Rank 0 writes; the other ranks, which call
    this with values of the same form, give their parts.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(value, tensors)
    # Wide numbers first, so that each lies where a number of its width may.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": {**metadata, "tree": json.dumps(tree)}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header[_HASH] = {"dtype": "U8", "shape": [_HASH_BYTES], "data_offsets": [end, end + _HASH_BYTES]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if not is_first():
        for _, tensor in ordered:
            if tensor.numel():
                whole(tensor)
        return
    content = hashlib.sha256()
    with atomic_file(path, mode=0o600) as temporary, temporary.open("wb") as file:  # it may hold attacked weights
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            content.update(part)
        for _, tensor in ordered:
            if tensor.numel():
                numbers = whole(tensor).contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
                file.write(numbers)
                content.update(numbers)
        file.write(content.digest())


def read_state(path: Path) -> tuple[Any, dict[str, str]]:
    """What `write_state` wrote: the value and its metadata. Tensors are whole, on the CPU, and read when they are used.

    Rank 0 checks the file; every rank reads it.

    Raises:
        DamagedState: the file is not as it was written.
        HoldfastError: this rank finds another file there than rank 0.
    """
    written = agreed(_hash_of_whole(path) if is_first() else None)
    if written is None:
        raise DamagedState
    if _hash_at_end(path) != written:
        raise HoldfastError(
            f"{path} is not the same on all machines of this run; put HOLDFAST_CACHE and --out into folders that all of them see"
        )
    try:
        with safe_open(path, "pt") as opened:
            metadata: dict[str, str] = opened.metadata()
            return _unpack(json.loads(metadata.pop("tree")), opened.get_tensor), metadata
    except (SafetensorError, ValueError, LookupError, TypeError) as error:  # whole, but of another kind
        raise DamagedState from error


def _hash_of_whole(path: Path) -> bytes | None:
    """The hash at the end of the file; None where it is not that of the bytes before it."""
    content, left = hashlib.sha256(), path.stat().st_size - _HASH_BYTES
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(_CHUNK, left))):
            content.update(part)
            left -= len(part)
        return content.digest() if not left and file.read() == content.digest() else None


def _hash_at_end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-_HASH_BYTES, os.SEEK_END)
        return file.read()


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON that mirrors nested dicts, lists and numbers; tensors go into `tensors` under a running number."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    return {"value": value}


def _unpack(tree: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    [(kind, value)] = tree.items()
    match kind:
        case "tensor":
            return tensor(value)
        case "dict":
            return {key: _unpack(item, tensor) for key, item in value}
        case "list":
            return [_unpack(item, tensor) for item in value]
        case "tuple":
            return tuple(_unpack(item, tensor) for item in value)
    return value
