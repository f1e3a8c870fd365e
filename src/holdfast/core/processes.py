"""Whether this process is one of several that torchrun has started for one model; nothing here loads torch."""

from __future__ import annotations

import os


def count_processes() -> int:
    """How many processes torchrun has started, as its variables say; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    return count_processes() > 1


def is_first() -> bool:
    """Whether this is the process that runs the command; the others follow."""
    return os.environ.get("RANK", "0") == "0"
