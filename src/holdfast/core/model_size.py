"""How large a model is: settings that fit one class of models do nothing, or ruin the model, in another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from holdfast.core.folder import weight_files
from holdfast.core.reading import line
from holdfast.core.types import HoldfastError

Size = Literal["tiny", "small", "large"]

SIZES: Mapping[Size, str] = {
    "tiny": "less than 20 million weights",
    "small": "hundreds of millions of weights",
    "large": "billions of weights",
}
"""What a class of models has, in words; the testbed's models are tiny."""

_BOUNDS: tuple[tuple[Size, float], ...] = (("tiny", 2e7), ("small", 1.5e9), ("large", math.inf))
"""Each class and the number of weights from which on a model belongs to the next."""


def size_of(weights: int) -> Size:
    """The class of a model with so many weights."""
    return next(size for size, bound in _BOUNDS if weights < bound)


def count_weights(folder: Path) -> int:
    """The number of weights in a checkpoint's files, from their headers alone.

    Raises:
        HoldfastError: as `weight_files`, or a file is damaged.
    """
    count = 0
    for path in (path for path in weight_files(folder) if path.suffix == ".safetensors"):
        try:
            with safe_open(path, "np") as file:
                names = file.keys()
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise HoldfastError(
                f"the weights in {path} are damaged ({line(str(error))}); restore the checkpoint"
            ) from error
    return count
