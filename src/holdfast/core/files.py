"""Atomic writes, content hashes and the places on disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from holdfast.core.outputs import check_outside_models, check_writable
from holdfast.core.types import HoldfastError


def cache_folder() -> Path:
    """Where trained testbeds and safeguard stages are kept: `HOLDFAST_CACHE`, else `~/.cache/holdfast`."""
    return Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")


def write_text(path: Path, text: str) -> None:
    """Write all of `text` or nothing: to a temporary file beside `path`, then by rename."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path that becomes `path`, with `mode`, when the block ends well and vanishes when it does not.

    Raises:
        HoldfastError: `path` is a device or the like, which a rename would replace.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise HoldfastError(f"the output {path} is no file; give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails halfway does not know it
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well and vanishes when it does not.

    An empty folder at `path` is replaced; a folder with content that has appeared there meanwhile stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        try:
            temporary.replace(path)
        except OSError:
            if not (path.is_dir() and any(path.iterdir())):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the content of `source` into the folder `target`. The first error ends the copy and is raised unwrapped."""
    for path in sorted(source.rglob("*")):
        copied = target / path.relative_to(source)
        if path.is_dir():
            copied.mkdir(exist_ok=True)
        else:
            shutil.copy2(path, copied)


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
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; the system releases the lock when the process dies, however it dies.

    The lock lies among the machine's temporary files, so that the folder keeps no trace of the lock.

    Raises:
        HoldfastError: another process holds the folder.
    """
    from filelock import FileLock, Timeout

    lock = Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}-{digest(str(folder.resolve()))[:16]}.lock"
    try:
        with FileLock(lock, timeout=1):  # whoever asks how it stands holds it for a moment
            yield
    except Timeout:
        raise HoldfastError(f"another holdfast is running in {folder}; wait for it, or stop it first") from None


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder by `only_one`."""
    try:
        with only_one(folder):
            return False
    except HoldfastError:
        return True


def clear_temporaries(folder: Path, name: str) -> None:
    """Remove what killed writes of files or folders that match `name` have left; no process may write there meanwhile."""
    for path in folder.glob(f".{name}.????????"):
        path.unlink() if path.is_file() else shutil.rmtree(path)


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
    if folder.is_dir() and any(folder.iterdir()):
        raise HoldfastError(f"the output folder {folder} already holds something else; give a new or an empty --out")
    check_outside_models(folder)
    check_writable(folder)


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
    names = ("holdfast", "torch", "transformers", "peft", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}",
    }
