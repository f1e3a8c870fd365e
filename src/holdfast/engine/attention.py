"""Which implementation of attention a model is loaded with: the one that its config names, where training can use that."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from holdfast.core.types import NumberType

_LOGGER = logging.getLogger("holdfast")
_KEYS = ("attn_implementation", "_attn_implementation")


def named_attention(config: Mapping[str, Any]) -> list[str]:
    """The implementations that a config.json names, for the model and for its parts.

    Args:
        config: the content of config.json; transformers reads two keys, of which each holds a name or a table of names.
    """
    names: set[str] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            names.update(map(str, filter(None, value.values())) if key in _KEYS else named_attention(value))
        elif key in _KEYS and value:
            names.add(str(value))
    return sorted(names)


def chosen_attention(
    folder: Path, named: list[str], device: torch.device | str, dtype: NumberType, short: bool
) -> dict[str, Any]:
    """What `from_pretrained` is told about attention; nothing where the config decides.

    A name that cannot be used here is passed over, with a word: which implementation it is changes last digits only. A name that
    is a repository of kernels would run code from elsewhere, so it is never used.

    Args:
        folder: of the model, for the word.
        named: as `named_attention` gives it.
        device: where the model will be.
        dtype: of the loaded weights.
        short: the model reads a few tokens only. There plain attention is faster on a CPU than the fused kernel.
    """
    kind = torch.device(device).type
    unusable = [name for name in named if not _usable(name, kind, dtype)]
    for name in unusable:
        _pass_over(folder, name)
    if unusable or named == ["sdpa"]:  # which is the default, with plain attention for a family without it
        return {"attn_implementation": None}
    return {} if named else {"attn_implementation": "eager" if short and kind == "cpu" else None}


def _usable(name: str, kind: str, dtype: NumberType) -> bool:
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

    if name in ("eager", "sdpa"):
        return True
    if name == "flex_attention":
        return kind == "cuda"  # on a CPU it has no backward pass
    version = re.fullmatch(r"flash_attention_(\d)", name)
    if version is None or kind != "cuda" or dtype == "float32":  # its kernels are for half precision
        return False
    known = FLASH_ATTENTION_COMPATIBILITY_MATRIX.get(int(version[1]))
    return known is not None and bool(known["general_availability_check"]())


@cache
def _pass_over(folder: Path, name: str) -> None:
    """Say it once a process: an audit loads a model many times."""
    _LOGGER.warning(
        "the config in %s names the attention %r, which cannot be used here; the default of transformers is taken",
        folder,
        name[:100],
    )
