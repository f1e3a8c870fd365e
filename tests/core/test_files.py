"""Writes that happen whole or not at all, and hashes of content."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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
    claimed,
    clear_temporaries,
    copy_folder,
    digest,
    file_digest,
    forget_digests,
    only_writer,
    sweep,
    write_text,
)
from holdfast.core.locks import LOCK
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


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_user_s_umask_says_who_may_read_what_is_written(umask: int, tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    with atomic_file(tmp_path / "replaced") as temporary:
        temporary.unlink()  # as writers do that put another file in its place
        temporary.touch(0o600)
    with atomic_file(tmp_path / "private", mode=0o600) as temporary:
        temporary.write_text("x")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inside").write_text("x")
    (tmp_path / "folder" / "inside").chmod(0o777)
    with atomic_folder(tmp_path / "copy") as temporary:
        copy_folder(tmp_path / "folder", temporary)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    modes.pop("folder/inside")
    file, folder = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {
        "file": file, "replaced": file, "private": 0o600, "folder": folder, "copy": folder, "copy/inside": file
    }  # fmt: skip


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


def test_of_two_that_make_one_folder_the_first_stays_whole_and_the_second_is_told(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def make() -> None:
        with atomic_folder(path) as slow:
            (slow / "slow").write_text("slow")
            with atomic_folder(path) as fast:
                (fast / "fast").write_text("fast")

    with pytest.raises(HoldfastError, match="was written by something else meanwhile; move it away, or give another"):
        make()
    assert [held.name for held in path.iterdir()] == ["fast"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_holds_only_what_a_kill_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / LOCK).touch()
    (path / ".campaign.json.0123abcd.holdfast").touch()
    with atomic_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert [held.name for held in path.iterdir()] == ["new"]


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


def killed(write: Callable[[Path], AbstractContextManager[Path]], path: Path) -> Path:
    """What a write leaves that is killed in the middle."""
    with suppress(Killed), write(path) as temporary:
        whole = temporary.is_dir()
        raise Killed
    if whole:
        temporary.mkdir()
        (temporary / "weights").touch()
    else:
        temporary.touch()
    return temporary


def test_only_what_killed_writes_left_is_cleared(tmp_path: Path) -> None:
    names = (
        ".gitignore",
        "a.jsonl",
        ".a.jsonl",
        ".cache.d",
        ".env.template",
        ".a.jsonl.0123abcd",
        "x.0123abcd.holdfast",
    )
    mine = [tmp_path / where / name for where in ("", "deep") for name in names]
    (tmp_path / "deep").mkdir()
    for path in mine:
        path.write_text("x")
    left = [
        killed(write, tmp_path / name)
        for write, name in [(atomic_file, "a.jsonl"), (atomic_file, "deep/b.json"), (atomic_folder, "deep/TAMPERED-1")]
    ]
    # As versions before named them.
    left += [tmp_path / f".{name}.json.k3j2h_g0" for name in ("campaign", "demo", "run", "search", "testbed")]
    for path in left[3:]:
        path.touch()
    assert all(path.exists() for path in left)
    clear_temporaries(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_a_folder_is_claimed_by_its_marker_or_because_it_holds_nothing(tmp_path: Path) -> None:
    """Whatever a kill has left there, the marker written or not."""
    for name in ("new", "empty", "begun", "left", "old"):
        folder = tmp_path / name
        if name != "new":
            folder.mkdir()
        if name == "begun":
            (folder / "marker.json").touch()
            (folder / "more").touch()
        if name == "left":
            (folder / LOCK).touch()
            killed(atomic_file, folder / "marker.json")
        if name == "old":
            (folder / ".campaign.json.k3j2h1g0").touch()
        with claimed(folder, "marker.json") as known:
            assert known == (name == "begun")
            assert {path.name for path in folder.iterdir()} - {LOCK} == ({"marker.json", "more"} if known else set())
    (tmp_path / "other").mkdir()
    for name in ("thesis.txt", ".campaign.json.0123abcd.holdfast"):
        (tmp_path / "other" / name).touch()
    with pytest.raises(HoldfastError, match="already holds something else"), claimed(tmp_path / "other", "marker.json"):
        pass
    assert len(list((tmp_path / "other").iterdir())) == 2


def test_a_claim_is_checked_again_when_the_folder_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have come in between."""

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        (folder / "thesis.txt").touch()
        yield

    monkeypatch.setattr(files, "only_one", late)
    with pytest.raises(HoldfastError, match="already holds something else"), claimed(tmp_path, "marker.json"):
        pass


def test_the_only_writer_of_a_file_clears_what_killed_writes_of_it_left(tmp_path: Path) -> None:
    left = [killed(atomic_file, tmp_path / f"report.{suffix}") for suffix in ("html", "md")]
    other = killed(atomic_file, tmp_path / "other.html")
    with only_writer(tmp_path / "report.html", tmp_path / "report.md"):
        assert not any(path.exists() for path in left)
        with (
            pytest.raises(HoldfastError, match=r"another holdfast is writing .*report\.html"),
            only_writer(tmp_path / "report.html"),
        ):
            pass
        with only_writer(tmp_path / "card.md"):
            pass
    assert list(tmp_path.iterdir()) == [other]


def test_a_cache_is_swept_of_what_nobody_is_writing(tmp_path: Path) -> None:
    keys = [digest(i) for i in range(4)]
    for key in keys[:2]:
        killed(atomic_folder, tmp_path / key)
        killed(atomic_file, tmp_path / f"{key}.part")
        (tmp_path / f".{key}.k3j2h1g0").mkdir()  # as versions before named it
        (tmp_path / f"{key}.part").touch()
    for name in (keys[2], keys[3]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / f"{keys[2]}.part").touch()  # its result is there
    with only_writer(tmp_path / keys[1], tmp_path / f"{keys[1]}.part"):
        (tmp_path / f".{keys[1]}.0123abcd.holdfast").mkdir()
        sweep(tmp_path)
        assert (tmp_path / f".{keys[1]}.0123abcd.holdfast").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{key}.part" for key in keys[:2]), keys[2], keys[3], f".{keys[1]}.0123abcd.holdfast"
    }  # fmt: skip
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*(f"{key}.part" for key in keys[:2]), keys[2], keys[3]}
    sweep(tmp_path / "nowhere")


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


@pytest.mark.situation("interruption", "a clock that goes back")
def test_a_clock_that_goes_back_makes_no_old_content_pass_for_the_new(
    read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file then seems to come from the future, and a second write may have an earlier time than the first."""
    path = tmp_path / "weights"
    path.write_bytes(b"before")
    monkeypatch.setattr(files.time, "time_ns", lambda: path.stat().st_mtime_ns - 3600 * 10**9)
    before, moment = file_digest(path), path.stat()
    path.write_bytes(b"behind")
    os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns - 1800 * 10**9))
    assert file_digest(path) != before
    assert len(read) == 2
