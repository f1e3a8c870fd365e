"""Whether the sizes in a config can be those of its weights, before anything is built to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.core.escape import short
from holdfast.core.types import HoldfastError

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_NEVER_EMPTY = (*_LAYERS, "hidden_size", "vocab_size", "num_attention_heads", "n_embd", "n_head", "d_model")
_COUNTS = re.compile(r"(_size|_dim|_rank|_heads?|_experts|_layers?|_embd|d_model|n_inner)$")
_FREE = 2**20
"""a size up to which a config may name what its weights do not hold, such as a window"""
_FEW = 1000
"""layers that may share one set of weights"""


def check_sizes(config: Mapping[str, Any], tensors: int, size: int, folder: Path) -> None:
    """Refuse a config whose model could not be built, or would be built for hours.

    Args:
        config: of the model, as JSON.
        tensors: in its files.
        size: of its files in bytes. A weight takes an eighth of a byte at least.
        folder: of the model.

    Raises:
        HoldfastError: a size is below 1, there are more layers than tensors, or a size is beyond all weights.
    """
    for name, value in _numbers(config):
        said = f"{folder / 'config.json'} says {name} = {short(str(value), 30)}"
        if name in _NEVER_EMPTY and value < 1:
            raise HoldfastError(f"{said}, where a model has 1 or more; restore the checkpoint")
        if name in _LAYERS and value > max(_FEW, tensors):
            raise HoldfastError(f"{said}, but its weights are only {tensors} tensors; restore the checkpoint")
        if _COUNTS.search(name) and value > max(_FREE, 8 * size):
            raise HoldfastError(f"{said}, but its weights are only {size} bytes; restore the checkpoint")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value
