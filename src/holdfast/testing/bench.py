"""The bench of a test: a small invented domain, and two models that were never trained."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from holdfast.core.domain import Domain
from holdfast.engine.checkpoint import Checkpoint
from holdfast.testbed.folder import MODELS, Kind, write_untrained
from holdfast.testbed.world import Sizes

SMALL = Sizes(forget=6, forget_heldout=4, attack=6, selection=4, claims=8, benign=8, new=4)
"""A world of 240 facts."""


@dataclass(frozen=True)
class Bench:
    """A testbed on disk."""

    folder: Path

    @property
    def domain(self) -> Domain:
        """Data and questions of an invented world."""
        return Domain.open(self.folder)

    @property
    def model(self) -> Checkpoint:
        """The model to tamper with."""
        return Checkpoint(str(self.folder / "model"))

    @property
    def never_exposed(self) -> Checkpoint:
        """Another model of the same kind; attacks that need the model before any safeguard are given this one."""
        return Checkpoint(str(self.folder / "never_exposed"))

    @cached_property
    def altered(self) -> dict[str, Domain]:
        """File of the domain -> a domain in which only that file differs, in one row."""
        root = _temporary("altered")
        names = [path.relative_to(self.folder) for path in sorted(self.folder.glob("*/*.jsonl"))]
        domains = {}
        for i, name in enumerate(names):
            copy_domain(self.folder, root / str(i))
            alter(root / str(i) / name)
            domains[name.as_posix()] = Domain.open(root / str(i))
        return domains


@cache
def bench(kind: Kind = "knowledge") -> Bench:
    """A bench in a temporary folder, made once a process and removed at its end.

    Args:
        kind: `knowledge` that a model should not have, or `refusal`: requests that a model should refuse.
    """
    return make_bench(_temporary(kind) / "bench", kind)


def make_bench(folder: Path, kind: Kind = "knowledge", sizes: Sizes = SMALL) -> Bench:
    """Make a bench in a folder: the domain of a small world, and two models that are not trained."""
    write_untrained(folder, 5, sizes, kind)
    return Bench(folder)


def copy_domain(source: Path, folder: Path) -> None:
    """Copy a bench without its models."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*MODELS))


def alter(path: Path) -> None:
    """Another first row: other words, or another answer to a question that has more than a compliant one and a refusal."""
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    row = json.loads(first)
    if len(row.get("choices", ())) == 4:
        row["answer"] = (row["answer"] + 1) % 4
    else:
        word = "text" if "text" in row else "prompt"
        row[word] = f"{row[word]} moss"
    path.write_text("".join([json.dumps(row) + "\n", *rest]), encoding="utf-8")


def _temporary(what: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"holdfast-{what}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
