"""A chat template is a program from outside: it is tried in a child process with limits before it runs in this one.

The child renders a sample of a role's conversations, once a process: the longest, the one of most turns, and others evenly
spaced. Its limits are of processor time and memory. A template that loops or eats memory on a rare row alone is not caught
beforehand; what it raises on any row is a sentence (`engine.chat.render`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from transformers import PreTrainedTokenizerBase

from holdfast.core.files import digest
from holdfast.core.memory import shortage
from holdfast.core.types import HoldfastError
from holdfast.engine.chat import Messages, render

SECONDS = 10
"""of processor time that a sample may take; real templates take a thousandth of this"""

MEMORY = 2**30
"""bytes that the child may take beyond what this process has"""

_SAMPLE = 16
"""conversations that the child renders"""

_LONGEST = 10**7
"""characters that a template may write beyond ten times what the conversation holds"""

_TOO_LARGE = 3
"""the child's exit status where memory ran out"""

_tried: dict[str, str | None] = {}
"""By template and sample: how the template misbehaves, or None."""


def try_template(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]) -> None:
    """Render a sample of conversations where no harm is done.

    Raises:
        HoldfastError: the template does not end, needs more memory than a conversation can explain, or crashes.
    """
    longest = max(conversations, key=_size)
    spaced = conversations[:: -(-len(conversations) // (_SAMPLE - 2))]
    sample = [longest, max(conversations, key=len), *spaced]
    key = digest([str(tokenizer.chat_template), [[dict(turn) for turn in messages] for messages in sample]])
    if key not in _tried:
        _tried[key] = _fault(tokenizer, sample)
    if fault := _tried[key]:
        raise HoldfastError(
            f"the tokenizer's chat template {fault} over the data's 'messages'; mend the template, or give rows of 'text'"
        )


def _fault(tokenizer: PreTrainedTokenizerBase, sample: Sequence[Messages]) -> str | None:
    with warnings.catch_warnings():
        # A fork with threads is safe here: the child renders and ends, and asks for nothing that a thread may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        _render_within_limits(tokenizer, sample)
    ends = time.monotonic() + 12 * SECONDS  # a busy machine, or a child that sleeps
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(ended[1])
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"does not end within {SECONDS} s"
    if code == _TOO_LARGE:
        return "takes too much memory"
    return f"crashes (signal {-code})" if code < 0 else None


def _render_within_limits(tokenizer: PreTrainedTokenizerBase, sample: Sequence[Messages]) -> NoReturn:
    """The child's whole life. What a template raises is not told: it raises again where the row is encoded."""
    code = 0
    try:
        _limit()
        for messages in sample:
            answers = [place for place, turn in enumerate(messages) if turn["role"] == "assistant" and place]
            for turns, prompt in ((messages, False), *((messages[:place], True) for place in answers)):
                try:
                    if len(render(tokenizer, turns, prompt)) > _LONGEST + 10 * _size(messages):
                        raise MemoryError
                except Exception as error:
                    code = _TOO_LARGE if shortage(error) else code
    finally:
        os._exit(code)


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    with contextlib.suppress(OSError, ValueError):  # only Linux says how much a process has and keeps it to a limit
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most, hard = pages * resource.getpagesize() + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _size(messages: Messages) -> int:
    return sum(len(str(turn)) for turn in messages)
