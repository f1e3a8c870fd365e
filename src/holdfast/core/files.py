"""Atomic writes, content hashes and the places on disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from holdfast.core.locks import LOCK, PATIENCE, held, is_held, only_one
from holdfast.core.outputs import check_outside_models, check_writable
from holdfast.core.processes import count_processes
from holdfast.core.types import HoldfastError


def cache_folder() -> Path:
    """Where trained testbeds and safeguard stages are kept: `HOLDFAST_CACHE`, else `~/.cache/holdfast`."""
    return Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")


def write_text(path: Path, text: str) -> None:
    """Write all of `text` or nothing: to a temporary file beside `path`, then by rename."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well and vanishes when it does not.

    Args:
        path: the file.
        mode: its permissions, of which the user's umask takes away.

    Raises:
        HoldfastError: `path` is a device or the like, which a rename would replace.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise HoldfastError(f"the output {path} is no file; give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)  # whoever wrote it may have put another file in its place
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails halfway does not know it
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well and vanishes when it does not.

    Args:
        path: the folder; an empty one is replaced.
        mode: its permissions, of which the user's umask takes away.

    Raises:
        HoldfastError: a folder with content has appeared at `path` meanwhile; that folder stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir(mode)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if path.is_dir() and not is_held(path):
            for left in filter(_is_ours, path.iterdir()):
                _remove(left)
        try:
            temporary.replace(path)
        except OSError as error:
            if not (path.is_dir() and any(path.iterdir())):
                raise
            raise HoldfastError(
                f"{path} was written by something else meanwhile; move it away, or give another --out"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A new name beside `path` that `clear_temporaries` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.holdfast")


_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.[0-9a-f]{8}\.holdfast"
    # As versions up to 0.1 named them, where no file of the user's is called so.
    r"|\.(?P<old>(?:campaign|demo|run|search|testbed)\.json|[0-9a-f]{64}(?:\.part)?)\.[a-z0-9_]{8}",
    re.DOTALL,
)


def _to_disk(file: Path) -> None:
    """Wait until a file's content is on the disk: some file systems say only then that it is full."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


def copy_folder(source: Path, target: Path) -> None:
    """Copy the content of `source` into the folder `target`, with the permissions of new files.

    The first error ends the copy and is raised unwrapped.
    """
    for path in sorted(source.rglob("*")):
        copied = target / path.relative_to(source)
        if path.is_dir():
            copied.mkdir(exist_ok=True)
        else:
            shutil.copyfile(path, copied)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise OSError where safetensors and tokenizers raise their errors because the system refuses a write to `path`."""
    try:
        yield
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


@contextmanager
def claimed(folder: Path, marker: str, *inputs: Path) -> Iterator[bool]:
    """Hold a folder that has `marker`, or is new or empty, cleared of what killed writes have left; whether it has the marker.

    Who claims a folder writes the marker before anything else, so that a folder that holds something and has no marker is
    somebody else's, whenever a run was killed.

    Raises:
        HoldfastError: the folder holds something else or is an input, or another process works in it.
    """
    if not (folder / marker).is_file():
        claim_output(folder, *inputs)
    with only_one(folder):
        known = (folder / marker).is_file()
        if not known:
            claim_output(folder, *inputs)
        clear_temporaries(folder)
        yield known


@contextmanager
def only_writer(path: Path, *others: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only process that writes `path`, and `others` beside it; what killed writes of them have left is cleared.

    Args:
        path: a file, or a folder that appears whole.
        others: written with it.
        patience: seconds to wait for another process.

    Raises:
        HoldfastError: another process writes `path`.
    """
    with held(path.with_name(f".{path.name}.lock"), f"writing {path}", patience):
        names = {place.name for place in (path, *others)}
        for left in path.parent.iterdir():
            if (name := _TEMPORARY.fullmatch(left.name)) and (name["name"] or name["old"]) in names:
                _remove(left)
        yield


def clear_temporaries(folder: Path) -> None:
    """Remove what killed writes have left in a folder and below it; no process may write there meanwhile."""
    for where, folders, files in os.walk(folder):
        for name in [name for name in (*folders, *files) if _TEMPORARY.fullmatch(name)]:
            _remove(Path(where) / name)
            if name in folders:
                folders.remove(name)


def sweep(folder: Path) -> None:
    """Remove what killed processes have left in a part of the cache, each thing under the lock of what it belongs to.

    That is what they were writing, and what runs keep beside their result (`beside`) whose result is there.
    """
    for left in folder.iterdir() if folder.is_dir() else ():
        temporary = _TEMPORARY.fullmatch(left.name)
        name = (temporary["name"] or temporary["old"]) if temporary else left.name
        made = folder / name.removesuffix(_STATE).removesuffix(_LOSSES)
        if temporary or (left in beside(made) and made.is_dir()):
            with suppress(HoldfastError), only_writer(made, *beside(made), patience=0.0):
                if made.is_dir():
                    for kept in beside(made):
                        kept.unlink(missing_ok=True)


_STATE, _LOSSES = ".part", ".losses"


def beside(made: Path) -> tuple[Path, Path]:
    """What a run keeps beside its result in the cache until the result is there: its state, and the stream of its losses."""
    return made.with_suffix(_STATE), made.with_suffix(_LOSSES)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def claim_output(folder: Path, *inputs: Path) -> None:
    """Check that `folder` may receive a result.

    Raises:
        HoldfastError: the folder is one of the inputs, is a file, holds something else, is inside a model's folder, or cannot
            be written.
    """
    for path in inputs:
        if folder.resolve() == path.resolve():
            raise HoldfastError(f"the output folder {folder} is also an input; give another --out")
    if folder.exists() and not folder.is_dir():
        raise HoldfastError(f"the output {folder} is a file; give a folder as --out")
    if folder.is_dir() and not all(map(_is_ours, folder.iterdir())):
        raise HoldfastError(f"the output folder {folder} already holds something else; give a new or an empty --out")
    check_outside_models(folder)
    check_writable(folder)


def _is_ours(path: Path) -> bool:
    """Whether a file has a name that no user gives: a lock's, or that of what a killed write left."""
    return path.name == LOCK or path.name.startswith(f"{LOCK}.") or _TEMPORARY.fullmatch(path.name) is not None


def digest(value: Any) -> str:
    """Content hash of a JSON-able value: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Content hash of a file: 64 hexadecimal digits.

    A process reads a file once, and again only where its inode, size or times are others, or after `forget_digests`.
    """
    path = path.resolve()
    before = _state(path)
    if path not in _digests or _digests[path][0] != before:
        content = _hashed(path)
        if _state(path) != before or time.time_ns() - max(before[-2:]) < _SETTLED:
            return content
        _digests[path] = (before, content)
    return _digests[path][1]


def forget_digests() -> None:
    """Make `file_digest` read every file again. A run starts with this and so relies on no earlier read."""
    _digests.clear()


_SETTLED = 2 * 10**9
"""nanoseconds after which another write would show in a file's times, however coarse the file system's clock is"""

_digests: dict[Path, tuple[tuple[int, ...], str]] = {}
"""resolved path -> its state when it was read, and the hash of its content"""


def _state(path: Path) -> tuple[int, ...]:
    """The values that change when a file is written or replaced; the last two are its times in nanoseconds."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment() -> dict[str, str]:
    """Versions and hardware, for the record."""
    names = (
        "holdfast", "torch", "transformers", "peft", "numpy", "scipy", "safetensors", "tokenizers", "schedulefree",
        "lion-pytorch",
    )  # fmt: skip
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}",
        **({"processor": processor} if (processor := _processor()) else {}),
        **({"processes": str(processes)} if (processes := count_processes()) > 1 else {}),
    }


@cache
def _processor() -> str:
    """The processor's name, as far as the system tells it: other processors give other last bits."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    return names[1].strip() if names else platform.processor()
