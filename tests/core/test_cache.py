"""Entries of the cache: used only as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.core.cache import SEAL, copy_entry, has_entry, new_entry


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "entry"
    with new_entry(folder) as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "part").write_bytes(b"part")
        (temporary / "weights").write_bytes(b"weights")
        assert not has_entry(folder)
    return folder


def test_an_entry_is_used_and_copied_without_its_seal(entry: Path, tmp_path: Path) -> None:
    assert has_entry(entry)
    (tmp_path / "copy").mkdir()
    copy_entry(entry, tmp_path / "copy")
    assert sorted(path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*")) == [
        "below",
        "below/part",
        "weights",
    ]
    assert has_entry(entry)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "weights").write_bytes(b"weightt"),
        lambda entry: (entry / "weights").write_bytes(b""),
        lambda entry: (entry / "below" / "part").unlink(),
        lambda entry: (entry / "more").write_bytes(b""),
        lambda entry: (entry / SEAL).unlink(),
        lambda entry: (entry / SEAL).write_bytes(b"["),
        lambda entry: (entry / SEAL).write_bytes(b"[" * 100_000),
    ],
    ids=["flipped", "emptied", "missing", "added", "no seal", "a damaged seal", "a deep seal"],
)
def test_a_damaged_entry_is_removed_with_a_word(
    damage: Callable[[Path], None], entry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(entry)
    assert not has_entry(entry)
    assert [record.message for record in caplog.records] == [
        f"the cached model {entry} is damaged or has no seal; it is made anew"
    ]
    assert not entry.exists()
    with new_entry(entry) as temporary:
        (temporary / "weights").write_bytes(b"weights")
    assert has_entry(entry)
