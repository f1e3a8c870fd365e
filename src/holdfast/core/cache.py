"""Entries of the cache: folders that are sealed with their content and checked against the seal before they are used."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.core.files import atomic_folder, copy_folder, file_digest, write_text

SEAL = ".sealed.json"
"""A content hash for each file of the entry, by name. It appears with the entry, since a folder appears whole."""

_LOGGER = logging.getLogger("holdfast")


@contextmanager
def new_entry(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes the entry `folder`, sealed, when the block ends well."""
    with atomic_folder(folder) as temporary:
        yield temporary
        write_text(temporary / SEAL, json.dumps(_content(temporary), indent=2) + "\n")


def has_entry(folder: Path) -> bool:
    """Whether the cache has this entry as it was written. A damaged entry is removed, with a word."""
    if not folder.is_dir():
        return False
    try:
        whole = bool(json.loads((folder / SEAL).read_bytes()) == _content(folder))
    except (OSError, ValueError, RecursionError):
        whole = False
    if not whole:
        _LOGGER.warning("the cached model %s is damaged or has no seal; it is made anew", folder)
        shutil.rmtree(folder)
    return whole


def copy_entry(folder: Path, target: Path) -> None:
    """Copy an entry into the folder `target`, without its seal."""
    copy_folder(folder, target)
    (target / SEAL).unlink()


def _content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
