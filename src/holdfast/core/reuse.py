"""Work that is found done is not done again, and whoever runs a command hears of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOGGER = logging.getLogger("holdfast.reuse")
_REUSED = "reused from the cache: "


def say_reused(what: str) -> None:
    """Say that a result of an earlier run is used: to whoever listens, else in the log as a warning."""
    tell(_REUSED + what)


def tells_of_reuse(sentence: str) -> bool:
    """Whether a sentence comes from `say_reused`, perhaps in another process of this run."""
    return sentence.startswith(_REUSED)


def tell(sentence: str) -> None:
    """Pass on what another process of this run has said."""
    _LOGGER.warning("%s", sentence)


@contextmanager
def hearing(hear: Callable[[str], None]) -> Iterator[None]:
    """Within the block, what is reused goes to `hear` in place of the log."""
    listener = _Listener(hear)
    before = _LOGGER.propagate
    _LOGGER.addHandler(listener)
    _LOGGER.propagate = False
    try:
        yield
    finally:
        _LOGGER.removeHandler(listener)
        _LOGGER.propagate = before


class _Listener(logging.Handler):
    """A handler that hands sentences to a function."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())
