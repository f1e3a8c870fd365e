"""Writes that happen whole or not at all, and hashes of content."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core import files
from holdfast.core.files import (
    atomic_file,
    atomic_folder,
    cache_folder,
    claim_output,
    clear_temporaries,
    digest,
    file_digest,
    forget_digests,
    write_text,
)
from holdfast.core.types import HoldfastError


class Killed(BaseException):
    """Ctrl-C and its like."""


@pytest.mark.parametrize("error", [ValueError, Killed])
@pytest.mark.parametrize("before", ["old", None])
def test_a_file_whose_writing_fails_leaves_what_was_there(
    before: str | None, error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "file"
    if before is not None:
        write_text(path, before)

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            assert not path.exists() if before is None else path.read_text() == before
            raise error

    with pytest.raises(error):
        fail()
    assert [held.name for held in path.parent.iterdir()] == ([] if before is None else ["file"])
    assert before is None or path.read_text() == before


def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent  # a rename within one file system
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_replaces_another_does_not_write_through_it(tmp_path: Path) -> None:
    """Who has the old file open goes on reading the old content."""
    path = tmp_path / "file"
    write_text(path, "old")
    with path.open() as held:
        write_text(path, "new")
        assert held.read() == "old"
    assert path.read_text() == "new"


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inside").write_text("x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_any_text_is_written_as_utf_8(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "written"
    write_text(path, text)
    assert path.read_text(encoding="utf-8") == text


def test_a_folder_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "one").write_text("1")
        assert not path.exists()
        (temporary / "two").mkdir()
    assert sorted(held.name for held in path.iterdir()) == ["one", "two"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, Killed])
@pytest.mark.parametrize("before", ["absent", "empty", "held"])
def test_a_folder_whose_making_fails_leaves_what_was_there(
    before: str, error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "folder"
    if before != "absent":
        path.mkdir()
    if before == "held":
        (path / "old").write_text("old")

    def fail() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "new").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == ([] if before == "absent" else [path])
    assert before != "held" or (path / "old").read_text() == "old"
    assert not (path / "new").exists()


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert [held.name for held in path.iterdir()] == ["new"]


def test_of_two_that_make_one_folder_the_first_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as slow:
        (slow / "slow").write_text("slow")
        with atomic_folder(path) as fast:
            (fast / "fast").write_text("fast")
    assert [held.name for held in path.iterdir()] == ["fast"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_folder_s_place_is_no_folder_made_by_another(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.write_text("a file")

    def make() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "new").write_text("new")

    with pytest.raises(OSError, match="folder"):
        make()
    assert path.read_text() == "a file"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_neighbours_are_left_alone(make: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path) -> None:
    neighbour = tmp_path / ".thing.of-another"
    neighbour.write_text("x")
    with make(tmp_path / "thing") as temporary:
        assert temporary != neighbour
    assert neighbour.read_text() == "x"


def test_a_new_and_an_empty_output_may_be_claimed_and_nothing_is_made(tmp_path: Path) -> None:
    claim_output(tmp_path / "not" / "yet" / "there", tmp_path / "input")
    claim_output(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_output_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(HoldfastError, match="already holds something else; give a new or an empty --out"):
        claim_output(tmp_path)


def test_only_what_killed_writes_left_is_cleared(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in (".gitignore", "a.jsonl", ".a.jsonl", ".cache.d")]
    for path in mine:
        path.write_text("x")
    (tmp_path / ".a.jsonl.abcd1234").write_text("half")
    (tmp_path / ".TAMPERED-1.abcd1234").mkdir()
    clear_temporaries(tmp_path, "*.jsonl")
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / ".TAMPERED-1.abcd1234"])
    clear_temporaries(tmp_path, "TAMPERED-*")
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HoldfastError, match="is a file; give a folder as --out"):
        claim_output(tmp_path / "file")


def test_an_output_that_is_an_input_by_any_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (tmp_path / "link").symlink_to(given)
    monkeypatch.chdir(tmp_path)
    for name in (given, tmp_path / "link", Path("given"), tmp_path / "link" / ".." / "given"):
        with pytest.raises(HoldfastError, match="is also an input; give another --out"):
            claim_output(name, tmp_path / "else", given)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def no_access(path: Path, mode: int) -> bool:
        asked.append(path)
        return not mode & os.W_OK

    # The user who runs tests may be one whom permissions do not bind.
    monkeypatch.setattr(files.os, "access", no_access)
    with pytest.raises(HoldfastError, match="cannot be written; give another --out or change its permissions"):
        claim_output(tmp_path / "new" / "deep")
    assert asked == [tmp_path]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(value=json_values)
def test_a_digest_survives_a_trip_through_json(value: Any) -> None:
    assert digest(json.loads(json.dumps(value))) == digest(value)
    assert len(digest(value)) == 64


@given(left=json_values, right=json_values)
def test_digests_are_equal_where_the_content_is(left: Any, right: Any) -> None:
    assert (digest(left) == digest(right)) == (json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True))


def test_a_digest_knows_order_in_lists_and_none_in_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest(1) != digest("1")


def test_a_digest_stays_what_it_was_in_records_of_earlier_runs() -> None:
    """Names of cells and stages on people's disks are made of it."""
    assert digest({"b": [1, 2.5, None, "é"], "a": True}) == (
        "9c4bfd7a7a37f79a4cc84517bc1a568ada4dd69609e566813b0e51f5507ef70c"
    )


def test_a_file_s_digest_is_of_its_bytes_alone(tmp_path: Path) -> None:
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b") != file_digest(tmp_path / "c")
    assert file_digest(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_cache_is_where_the_environment_says_else_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", None):
        if value is None:
            monkeypatch.delenv("HOLDFAST_CACHE")
        else:
            monkeypatch.setenv("HOLDFAST_CACHE", value)
        assert cache_folder() == tmp_path / "home" / ".cache" / "holdfast"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files whose content was hashed, each time anew; times are taken to be exact."""
    hashed: list[Path] = []
    plain = files._hashed
    monkeypatch.setattr(files, "_SETTLED", 0)
    monkeypatch.setattr(files, "_hashed", lambda path: [hashed.append(path), plain(path)][1])
    forget_digests()
    yield hashed
    forget_digests()


def test_a_file_is_read_once_whatever_path_leads_to_it(read: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"content")
    (tmp_path / "link").symlink_to(path)
    assert len({file_digest(path), file_digest(tmp_path / "link"), file_digest(tmp_path / "." / "weights")}) == 1
    assert read == [path]


@pytest.mark.parametrize("how", ["written over", "replaced", "another time"])
def test_a_file_that_changed_is_read_again_though_it_kept_its_size(how: str, read: list[Path], tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(b"before")
    other.write_bytes(b"behind")
    before, moment = file_digest(path), path.stat()
    if how == "replaced":
        os.utime(other, ns=(moment.st_atime_ns, moment.st_mtime_ns))
        other.replace(path)
    elif how == "written over":
        path.write_bytes(b"behind")
        os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns + 1))
    else:
        os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns + 1))
    assert (file_digest(path) == before) == (how == "another time")
    assert len(read) == 2


def test_every_file_is_read_again_after_digests_are_forgotten(read: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    for _ in range(2):
        file_digest(tmp_path / "a")
        file_digest(tmp_path / "a")
        forget_digests()
    assert len(read) == 2


def test_a_file_that_was_written_just_now_is_read_again(
    read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write within the same tick of the clock would not show in its times."""
    monkeypatch.setattr(files, "_SETTLED", 10**15)
    (tmp_path / "a").write_bytes(b"a")
    file_digest(tmp_path / "a")
    file_digest(tmp_path / "a")
    assert len(read) == 2
