"""`reproduce.json`: all that another laboratory needs to make an audit again, and what came out. It holds no path.

The file has settings of attacks that worked, and is as internal as the report beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, with_config

from holdfast.core.files import digest, write_text
from holdfast.core.reading import STRICT, misfit, newer_schema, parsed
from holdfast.core.records import Amount, Count, Name, Number, Record, Seed, Status
from holdfast.core.types import HoldfastError, Matmul

SCHEMA = 1

FILE = "reproduce.json"
"""The file's name beside an audit."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class AuditedModel:
    """A model of the audit, by content."""

    label: str
    role: str
    digest: str
    """content hash of config and weights"""
    tokenizer: str
    """content hash of the tokenizer's files"""
    verdict: str
    """what the audit came to; empty for the ends of the scale"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Hazard after `step` updates."""

    step: Count
    value: Number
    stderr: Amount


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class EndedRun:
    """One run: what identifies it without labels and paths, and what came out."""

    cell: Name
    label: str
    """of its model"""
    model: str
    """content of its model"""
    attack: str
    seed: Seed
    evaluations: list[str]
    """names of what was asked"""
    status: Status
    draws: bool
    file: Sha256
    """hash of the file of its records"""
    values: Sha256
    """hash of every measured value alone, whatever the run took and wherever it ran"""
    hazard: list[Measurement]
    """by step"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """An audit as somebody else can make it again."""

    command: str
    """with names in capitals where the paths of the reader go"""
    title: str
    domain: str
    suite: str
    models: list[AuditedModel]
    attacks: dict[str, dict[str, Any]]
    """name -> class and every field"""
    canonical: str
    with_base: bool
    """whether the attacker has the undefended model"""
    seeds: list[Seed]
    milestones: list[Count] | None
    """given by hand; null: each attack's own, with hazard asked between them too"""
    stop_after_breach: Annotated[int, Field(ge=1)] | None
    precision: str
    device: str
    """its kind"""
    trust_remote_code: bool
    max_length: Annotated[int, Field(ge=1)]
    data: dict[str, str]
    """role -> content hash of the attacker's rows"""
    evaluations: dict[str, list[Any]]
    """name -> [class and fields, content hash of what it asks]"""
    protocol: int
    environments: list[dict[str, Any]]
    """versions and hardware of the runs, each once"""
    seconds: Amount
    """of all runs together"""
    plan: Sha256
    """hash of campaign.json"""
    runs: list[EndedRun]
    sibling: Sha256 | None = None
    """content of the model that the attacker holds in place of the undefended model; null: the attacker holds no other"""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """rows that went through the model at once while it was trained; null: what the attack says"""
    matmul: Matmul = "torch"
    """which library multiplied the float32 matrices of linear layers on a CPU"""
    public: Literal[False] = False
    """the file has settings of attacks"""
    schema: Annotated[int, Field(ge=1, le=SCHEMA)] = SCHEMA

    def write(self, path: Path) -> None:
        """Write the file, all or nothing."""
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Reproduction:
        """Read the file.

        Raises:
            HoldfastError: there is no such file, it is something else, or it has a newer schema.
        """
        try:
            read: Reproduction = parsed(_FILE, path.read_bytes())
            return read
        except OSError as error:
            raise HoldfastError(
                f"{path} cannot be read: {error.strerror}; give a {FILE} that holdfast wrote"
            ) from error
        except ValueError as error:
            if (newer := newer_schema(error)) is not None:
                raise HoldfastError(f"{path} has schema {newer}; this holdfast reads up to {SCHEMA}") from error
            raise HoldfastError(
                f"{path} is no {FILE} of an audit ({misfit(error)}); give one that holdfast wrote"
            ) from error


_FILE = TypeAdapter(Reproduction)


def file_hash(path: Path) -> str:
    """SHA-256 of a file as it is now: 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def values_hash(records: Iterable[Record]) -> str:
    """Hash of the measured values in the order of their places, to the last digit."""
    values = [[r.step, r.evaluation, r.metric, r.n, r.complete, r.value, r.stderr] for r in records]
    return digest(sorted(values, key=lambda value: value[:5]))
