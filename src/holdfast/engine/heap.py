"""Memory that this process has freed and keeps: the C library's heap on Linux."""

from __future__ import annotations

import ctypes
from functools import cache


def give_back() -> None:
    """Give the system back what is free in the heap; without glibc, nothing happens.

    Many small tensors that come and go leave holes between those that stay, and the process keeps the holes.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
