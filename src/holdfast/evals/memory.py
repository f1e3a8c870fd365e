"""How many rows go through a model at once, so that a measurement fits in memory wherever an attack on the same model fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.core.memory import LOGITS_AT_ONCE
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_AT_ONCE = 4096


def rows_at_once(model: PreTrainedModel, positions: int) -> int:
    """How many rows of so many positions may go through the model together; at least one."""
    words: int = model.config.get_text_config().vocab_size
    return max(min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // words) // positions, 1)


def beside_model(words: int) -> int:
    """The bytes that a measurement takes at most beside a model with a vocabulary of so many words: two copies of its logits."""
    return 2 * 4 * max(min(TOKENS_AT_ONCE * words, LOGITS_AT_ONCE), words)


@contextmanager
def fits(name: str) -> Iterator[None]:
    """Say in one sentence that the measurement `name` is too large for the device, where memory runs out.

    Raises:
        HoldfastError: the device ran out of memory.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise HoldfastError(
            f"the device has too little memory to measure {name} on this model; use a larger device or --precision lean"
        ) from error
