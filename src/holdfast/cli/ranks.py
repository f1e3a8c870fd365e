"""A command under torchrun: rank 0 runs the command as ever, and the other processes run with it what needs a model."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast.cli.terminal import fail
from holdfast.core.processes import is_first

VERBS = ("safeguard", "attack", "evaluate")
"""What runs on a model that is split over processes."""


STOPPED = 130
"""the status of a command that Ctrl-C ended"""


def on_ranks(words: list[str], run: Callable[[list[str]], Any]) -> Any:
    """Run a command as one of several processes; return its status.

    Raises:
        HoldfastError: the verb does not run on several processes.
    """
    verb = next((word for word in words if not word.startswith("-")), "holdfast")
    if verb not in VERBS:
        fail(
            f"{verb} does not run under torchrun, which is for {', '.join(VERBS[:-1])} and {VERBS[-1]} of one large model; run "
            "it without torchrun"
        )
    from holdfast.engine.ranks import dismiss, follow, opened

    with opened():
        if not is_first():
            follow()
            return 0
        status = run(words)
        if status == STOPPED:
            raise KeyboardInterrupt
        dismiss()
        return status


def may_speak() -> bool:
    """Whether this process is to say how the run ended. One of them is."""
    if "torch" not in sys.modules:
        return is_first()
    from holdfast.engine.ranks import speaks

    return speaks()


def tell_launcher(sentence: str) -> None:
    """Leave a sentence for torchrun, which quotes it at the end of its own report of a process that failed."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):  # the sentence stands on standard error too
            Path(path).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")


def on_ranks_ended(error: Exception) -> str:
    """The sentence on an error that says that another process has ended; empty for other errors."""
    from holdfast.engine.ranks import ENDED, is_torn

    return ENDED if is_torn(error) else ""
