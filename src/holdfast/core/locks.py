"""One process at a time: a lock in the folder that it guards, or beside the file that it guards.

The lock is `flock`, since the system takes it back when its process dies, however the process dies: a kill leaves a lock file,
but none that blocks the next run. A file made with O_EXCL would stay, and another machine could not tell whether its owner
lives. POSIX record locks reach no further, and a process loses them with the first descriptor of the file that it closes.
Linux takes flock to the server of a network file system (NFS since 2.6.12, Lustre, CephFS, GPFS), so jobs on several machines
are kept apart too. The lock lies where the work lies, because a job may have a TMPDIR of its own.

A file system that refuses flock (NFS without a lock service, Lustre mounted without it) gets the next best: every process lays
down a file named after its machine, its number and its start, and gives way to any other that lives. Whether a process of
another machine lives cannot be known there; the message then names the file.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from holdfast.core.types import HoldfastError

LOCK = ".holdfast.lock"
"""The lock file in a folder that one process works in; gone when the process has ended by itself."""

_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
PATIENCE = 0.3
"""seconds that a command waits for another: who only asks how a run stands has its lock for a moment"""

_SAYS_AFTER = 5.0
"""seconds after which whoever waits says so"""

_Release = Callable[[], None]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder for this process while the block runs; a folder that is missing is made, and goes again if it stays empty.

    Raises:
        HoldfastError: another process holds the folder, or something else lies in the lock's place.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with held(folder / LOCK, f"running in {folder}"):
            yield
    finally:
        for path in made:
            with suppress(OSError):  # it holds something
                path.rmdir()


@contextmanager
def held(lock: Path, doing: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock file `lock` while the block runs.

    Args:
        lock: the file; removed in the end.
        doing: what another process is doing if it has the lock, for the message.
        patience: seconds to wait for another process.

    Raises:
        HoldfastError: another process has the lock, or something else lies in its place.
    """
    started, said = time.monotonic(), False
    while (release := _lock(lock)) is None:
        waited = time.monotonic() - started
        if waited >= patience:
            raise HoldfastError(f"another holdfast is {doing}{_whose(lock)}; wait for it, or stop it first")
        if waited > _SAYS_AFTER and not said:
            logging.getLogger("holdfast").warning("waiting for another holdfast, which is %s%s", doing, _whose(lock))
            said = True
        time.sleep(random.uniform(0.02, 0.1))
    try:
        yield
    finally:
        release()


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder by `only_one`. Nothing is written: the folder may be somebody else's."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | _FLAGS)
    except OSError:
        return any(map(_lives, _claims(folder / LOCK)))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return any(map(_lives, _claims(folder / LOCK))) if error.errno in _NO_FLOCK else True
    finally:
        os.close(descriptor)


def _lock(lock: Path) -> _Release | None:
    """Take the lock if it is free; return what gives it back."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
    except FileNotFoundError:  # whoever had made the folder has taken it away again
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise HoldfastError(f"{lock} is no lock of holdfast; move it away, or give another --out") from error
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(descriptor, lock):
            os.close(descriptor)
            return None
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_FLOCK:
            return _claim(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.ESTALE):
            return None
        raise
    with suppress(OSError):  # for the message alone; the disk may be full
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {_machine()}\n".encode())

    def release() -> None:
        # The name goes first: a process that waits on the old file sees that it is no longer there.
        with suppress(OSError):
            lock.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    return release


def _is_at(descriptor: int, lock: Path) -> bool:
    """Whether the locked file is still the one of that name. Opening asks the server, which a status from a cache does not."""
    try:
        again = os.open(lock, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(again).st_nlink > 0 and os.path.samestat(os.fstat(descriptor), os.fstat(again))
    finally:
        os.close(again)


def _whose(lock: Path) -> str:
    """Which process has the lock, in brackets, where it can be told."""
    for claim in filter(_lives, _claims(lock)):
        return f" (if it has been killed, remove {claim})"
    with suppress(OSError, ValueError):
        if found := re.fullmatch(r"process \d+ on [\w.-]{1,253}\n", lock.read_bytes()[:300].decode()):
            return f" ({found[0].strip()})"
    return ""


# Where there is no flock


def _claim(lock: Path) -> _Release | None:
    """Take the lock by a file of this process's own; no two processes can both come first, for each looks after it has come."""
    lock.unlink(missing_ok=True)
    mine = lock.with_name(f"{lock.name}.{_machine()}.{os.getpid()}.{_start(os.getpid())}")
    try:
        os.close(os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:  # held in this process
        return None
    living = [rival for rival in _claims(lock) if _lives(rival)]
    if living != [mine]:
        mine.unlink(missing_ok=True)
        return None
    for dead in _claims(lock):
        if dead != mine:
            dead.unlink(missing_ok=True)
    return lambda: mine.unlink(missing_ok=True)


def _claims(lock: Path) -> list[Path]:
    if not lock.parent.is_dir():
        return []
    return sorted(path for path in lock.parent.iterdir() if path.name.startswith(f"{lock.name}."))


def _lives(claim: Path) -> bool:
    """Whether the process of a claim lives, or may live on another machine."""
    name, _, start = claim.name.rpartition(".")
    name, _, process = name.rpartition(".")
    return not (process.isdigit() and name.endswith(f".{_machine()}") and _start(int(process)) != start)


def _machine() -> str:
    return re.sub(r"[^\w.-]", "-", socket.gethostname(), flags=re.ASCII) or "unknown"


def _start(process: int) -> str:
    """When a process of this machine began, so that its number alone does not pass for it later; "gone" if it has ended."""
    with suppress(OSError):
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        pass
    return "running"
