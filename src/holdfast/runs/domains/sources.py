"""Where the rows of a ready domain come from: a set on the Hugging Face hub, or files of the same columns on this machine.

A downloaded copy of a hub set has the set's own layout, so one reader serves both: a folder's files are chosen by configuration
and split, and read as JSON lines, JSON, CSV or Parquet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from holdfast.core.files import digest, file_digest
from holdfast.core.reading import excerpt, line, parsed_json
from holdfast.core.types import HoldfastError

Record = Mapping[str, Any]
"""A row as its file has it."""

SPLITS = ("train", "validation", "test", "dev", "auxiliary_train")
KINDS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One part of a public data set."""

    hub: str
    """owner/name; empty: there is no public set"""
    config: str = ""
    """the configuration, which is a folder or a file of the set; empty: it has only one"""
    split: str = "train"
    licence: str = "see the set's card"
    ask: str = ""
    """the sentence on how to get a set that is gated or not public"""

    @property
    def name(self) -> str:
        """What messages and pages call it."""
        return " ".join(filter(None, (self.hub or "a set of your own", self.config, self.split)))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The files of a source, as a domain's provenance states them."""

    role: str
    place: str
    """the hub set with its revision, or the path"""
    licence: str
    content: str
    """hash of the files' contents"""
    rows: int


class Given:
    """The rows of a domain's sources, by role, and what was opened.

    Args:
        sources: role -> the public sets whose rows are taken together.
        places: role, or owner/name of a set -> a path or another set on the hub, in place of the public one.
    """

    def __init__(self, sources: Mapping[str, Sequence[Source]], places: Mapping[str, str]) -> None:
        self._sources, self._places = sources, places
        self._read: dict[str, list[Record]] = {}
        self.opened: list[Opened] = []

    def has(self, role: str) -> bool:
        """Whether the domain is made with this source."""
        return role in self._sources

    def rows(self, role: str, most: int | None = None) -> list[Record]:
        """The rows of a role, read once.

        Args:
            role: of the domain's sources.
            most: of each set, no file is opened once there are so many rows; None: all.

        Raises:
            HoldfastError: a set is gated, absent or out of reach, a file is malformed, or there are no rows.
        """
        if role not in self._read:
            self._read[role] = []
            for source in self._sources[role]:
                rows = self._rows(role, source, most)
                if not rows:
                    raise HoldfastError(f"the source {role} ({self._place(role, source)}) has no rows; give another")
                self._read[role] += rows
        return self._read[role]

    def _place(self, role: str, source: Source) -> str:
        return self._places.get(role) or self._places.get(source.hub) or source.hub

    def _rows(self, role: str, source: Source, most: int | None) -> list[Record]:
        place = self._place(role, source)
        if not place:
            raise HoldfastError(f"the source {role} is not public: {source.ask}")
        path, public = Path(place).expanduser(), place == source.hub
        local = path.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1
        files: Iterable[Path]
        files, where = (local_files(path, role, source), str(path)) if local else hub_files(place, role, source, public)
        rows: list[Record] = []
        opened: list[Path] = []
        for file in files:
            rows += islice(read(file), None if most is None else most - len(rows))
            opened.append(file)
            if most is not None and len(rows) >= most:
                break
        self.opened.append(
            Opened(
                role=role,
                place=" ".join(filter(None, (where, source.config, source.split))),
                licence=source.licence if public else "as its owner says",
                content=digest([file_digest(file) for file in opened]),
                rows=len(rows),
            )
        )
        return rows


def local_files(path: Path, role: str, source: Source) -> list[Path]:
    """The files of a source on this machine: `path` itself, or those of the source's configuration and split in it.

    Raises:
        HoldfastError: there is none.
    """
    if path.is_file():
        if path.suffix not in KINDS:
            raise HoldfastError(
                f"the source {role} ({path}) must be one of {', '.join(KINDS)}, or a folder of such files"
            )
        return [path]
    if not path.is_dir():
        raise HoldfastError(
            f"the source {role} ({path}) does not exist; give a file, a folder, or owner/name of a hub set"
        )
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    chosen = matching(names, source)
    if not chosen:
        there = line(", ".join(name for name in names if PurePosixPath(name).suffix in KINDS), 200) or "no such file"
        raise HoldfastError(
            f"the source {role} ({path}) has no file of {source.name}; it has: {there}; name the file itself"
        )
    return [path / name for name in chosen]


def hub_files(place: str, role: str, source: Source, public: bool) -> tuple[Iterator[Path], str]:
    """The files of a source on the hub, each downloaded or taken from the hub's cache when it is asked for; the set's revision.

    Raises:
        HoldfastError: the set is gated, absent or out of reach.
    """
    from huggingface_hub import HfApi, hf_hub_download

    ask = source.ask if public else ""
    with _reached(place, role, ask):
        known = HfApi().dataset_info(place)
    names = matching([file.rfilename for file in known.siblings or ()], source)
    if not names:
        raise HoldfastError(f"the set {place} on the hub has no file of {source.name}; give --source {role}=FILE")

    def files() -> Iterator[Path]:
        for name in names:
            with _reached(place, role, ask):
                file = Path(hf_hub_download(place, name, repo_type="dataset", revision=known.sha))
            yield file

    return files(), f"{place}@{known.sha}"


@contextmanager
def _reached(place: str, role: str, ask: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the hub's client raises, the user needs one sentence
        raise HoldfastError(_unreachable(place, role, ask, error)) from error


def _unreachable(place: str, role: str, ask: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        reason = "is gated"
        remedy = ask or f"ask for access on huggingface.co/datasets/{place} and log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "is not on the hub, or is private"
        remedy = ask or "check its name"
    else:
        reason = f"cannot be reached ({line(str(error), 160) or type(error).__name__})"
        remedy = f"download it where there is a connection{'; ' + ask if ask else ''}"
    return f"the set {place} {reason}: {remedy}; then run this again, or give a copy with --source {role}=PATH"


def matching(names: Iterable[str], source: Source) -> list[str]:
    """The files of a configuration and split among the names of a set's files.

    A configuration is a folder, or the beginning of a file's name; so is a split. Where no file names a split, all are of it.
    """
    paths = [PurePosixPath(name) for name in sorted(names)]
    paths = [path for path in paths if path.suffix in KINDS and path.name not in _ABOUT]
    if source.config:
        exact = [path for path in paths if source.config in path.parts[:-1] or path.stem == source.config]
        paths = exact or [path for path in paths if _begins(path.stem, source.config)]
    if any(_names(path, split) for path in paths for split in SPLITS):
        paths = [path for path in paths if _names(path, source.split)]
    return [str(path) for path in paths]


_ABOUT = ("dataset_infos.json", "dataset_info.json", "config.json", "state.json", "package.json")


def _names(path: PurePosixPath, split: str) -> bool:
    return split in path.parts[:-1] or _begins(path.stem, split)


def _begins(stem: str, word: str) -> bool:
    return stem == word or stem.startswith((f"{word}-", f"{word}."))


def read(file: Path) -> Iterator[Record]:
    """The rows of a file.

    Raises:
        HoldfastError: the file is not what its name says.
    """
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as text:
                yield from csv.DictReader(text)
        else:
            yield from _json(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, csv.Error) as error:
        raise HoldfastError(f"{file} cannot be read as {file.suffix[1:]}: {line(str(error), 200)}") from error


def _parquet(file: Path) -> Iterator[Record]:
    import pyarrow.parquet as parquet

    for batch in parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()


def _json(text: str) -> Iterator[Record]:
    """A list of objects, or an object a line."""
    beginning = text.lstrip()
    rows = (
        parsed_json(text)
        if beginning.startswith("[")
        else [parsed_json(row) for row in text.split("\n") if row.strip()]
    )
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"expected objects, found {excerpt(json.dumps(row))}")
        yield row


def column(row: Record, *names: str) -> Any:
    """The value of the first of these columns that a row has.

    Raises:
        HoldfastError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    has = line(", ".join(map(str, row)), 160)
    raise HoldfastError(f"a row has none of the columns {', '.join(names)}; it has: {has}; check --source")
