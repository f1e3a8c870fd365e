"""Where a result may be written: over nothing that another command or person made, and into no model's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from holdfast.core.types import HoldfastError

_ENDS = 65536
"""bytes at either end of a file in which its maker is looked for: a file of weights is never read whole"""


def claim_file(path: Path, made: re.Pattern[bytes]) -> None:
    """Check that a result may be written to the file `path`.

    Args:
        path: of the file.
        made: what an earlier result of the same command holds near its beginning or its end; such a file may be replaced,
            and an empty one.

    Raises:
        HoldfastError: there is a folder, or a file of another kind; it is in a model's folder; it cannot be written.
    """
    if path.is_dir():
        raise HoldfastError(f"the output {path} is a folder; give a file as --out")
    check_outside_models(path)
    if os.path.lexists(path) and not (path.is_file() and _may_be_replaced(path, made)):
        raise HoldfastError(f"{path} is there already and is no earlier result of this command; give another --out")
    check_writable(path)


def check_outside_models(path: Path) -> None:
    """Check that no folder above `path` is a model's, which would be another model with a result in it.

    Raises:
        HoldfastError: one is.
    """
    for parent in path.resolve().parents:
        if (parent / "config.json").is_file() and next(parent.glob("*.safetensors"), None):
            raise HoldfastError(f"the output {path} is inside the model's folder {parent}; give another --out")


def check_writable(path: Path) -> None:
    """Check that `path` can be made.

    Raises:
        HoldfastError: the nearest folder that exists cannot be written.
    """
    existing = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    if not os.access(existing, os.W_OK | (os.X_OK if existing.is_dir() else 0)):
        raise HoldfastError(f"{existing} cannot be written; give another --out or change its permissions")


def _may_be_replaced(path: Path, made: re.Pattern[bytes]) -> bool:
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, path.stat().st_size - _ENDS))
        return not head or made.search(head + file.read()) is not None
