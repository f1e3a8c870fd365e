"""How a process ends when the system asks: a scheduler that needs the machine, a shutdown, a container that is stopped.

The system asks by a signal (SIGTERM). Work that saves its state ends at its next step, after the state is saved. Other work ends
at once, as after Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STATUS = 143
"""the exit status of a process that the system stopped: 128 and the number of SIGTERM"""


class Stopped(BaseException):
    """The system has asked this process to end. This is no `Exception`, so that nobody takes it for a fault of the work."""


_asked = False
_savers = 0
"""how many blocks of `saving` are open"""


@contextmanager
def listening(*signals: int) -> Iterator[None]:
    """Within the block, the system's signal raises `Stopped`: at once, or where a block of `saving` ends.

    Only the main thread can listen; in any other thread the block changes nothing.

    Args:
        signals: beside SIGTERM.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = False
    before = {number: signal.signal(number, _hear) for number in (signal.SIGTERM, *signals)}
    try:
        yield
    finally:
        _asked = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def saving() -> Iterator[Callable[[], bool]]:
    """Within the block, the system's signal waits; the block asks whether the signal came, saves and raises `Stopped` itself.

    Raises:
        Stopped: the signal came too late for the block to ask.
    """
    global _savers
    _savers += 1
    try:
        yield lambda: _asked
    finally:
        _savers -= 1
    if _asked and not _savers:
        raise Stopped


def _hear(number: int, frame: FrameType | None) -> None:
    """Note the signal. A second signal must not disturb how the first is answered, so `Stopped` is raised once."""
    global _asked
    first, _asked = not _asked, True
    if first and not _savers:
        raise Stopped
