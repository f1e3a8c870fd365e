"""What takes much memory, and whether an error says that memory ran out.

Python, torch, the system and the loader of libraries each say it otherwise.
"""

from __future__ import annotations

import errno

_SAID = ("can't allocate memory", "cannot allocate memory", "failed to map segment", "can't start new thread")

LOGITS_AT_ONCE = 2**27
"""Half a gigabyte in single precision: 1024 positions of a vocabulary of 131 072 words."""

LESS = (
    "give --memory auto to safeguard or attack, or --micro-batch 1 where a model is trained, or --precision lean, or lower "
    "max_length in domain.toml"
)
"""what takes less memory, where a model runs"""


def shortage(error: BaseException) -> str | None:
    """Where memory ran out, in words, if the error or what caused it says so; else None. A message about input does not count."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ == "OutOfMemoryError":  # torch's, of a device; torch is not loaded here
            return "the device's memory ran out"
        said = isinstance(cause, (RuntimeError, ImportError)) and any(words in str(cause).lower() for words in _SAID)
        if isinstance(cause, MemoryError) or said or getattr(cause, "errno", None) == errno.ENOMEM:
            return "memory ran out"
        cause = cause.__cause__
    return None
