"""The precision of a model's files, which a model that is made from them keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from holdfast.core.folder import weight_files
from holdfast.core.types import NumberType

_NAMES: Mapping[str, NumberType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


_BYTES: Mapping[NumberType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


OTHERS = ""
"""The name that stands for every tensor that files do not name."""


def stored_precision(folder: Path, computed: NumberType) -> dict[str, NumberType]:
    """The precision of each tensor in a folder's files by its name, and under `OTHERS` that of most of their values.

    No tensor gets more digits than it was computed with, in `computed`. Quantised tensors are left out.

    Raises:
        HoldfastError: as `weight_files`.
    """
    stored, values = dict[str, NumberType](), Counter[NumberType]({computed: 0})
    for path in (path for path in weight_files(folder) if path.suffix == ".safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_slice(name)
                if (precision := _NAMES.get(tensor.get_dtype())) is not None:
                    stored[name] = precision if _BYTES[precision] <= _BYTES[computed] else computed
                    values[stored[name]] += math.prod(tensor.get_shape())
    return {**stored, OTHERS: values.most_common(1)[0][0]}


@contextmanager
def held_in(model: nn.Module, stored: Mapping[str, NumberType]) -> Iterator[None]:
    """Hold a model's weights in the precision of files while the block runs; afterwards in the model's own, rounded.

    Buffers that are saved count as weights.
    """
    written = model.state_dict()
    named = [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if name in written)]
    tensors = [
        (tensor, stored.get(name, stored[OTHERS]), tensor.dtype) for name, tensor in named if tensor.is_floating_point()
    ]
    try:
        for tensor, precision, _ in tensors:
            tensor.data = tensor.data.to(getattr(torch, precision))
        yield
    finally:
        for tensor, _, before in tensors:
            tensor.data = tensor.data.to(before)
