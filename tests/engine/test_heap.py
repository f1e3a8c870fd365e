"""Freed memory goes back to the system."""

from __future__ import annotations

import platform

import pytest

from holdfast.engine.heap import give_back
from holdfast.runs.memory import resident

SIZE, COUNT = 60_000, 3_000
"""blocks that the C library takes from its heap, 180 MB in all"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps holes and can give them back")
def test_holes_between_what_stays_are_given_back() -> None:
    blocks = [bytearray(SIZE) for _ in range(COUNT)]
    kept = blocks[::50]
    blocks.clear()
    before = resident()
    give_back()
    assert before - resident() > SIZE * COUNT / 2
    assert len(kept) == COUNT // 50
