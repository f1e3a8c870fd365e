"""What a measurement leaves behind: one file of JSON lines per cell, a header and then the records. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from holdfast.core.files import write_text
from holdfast.core.findings import read_findings
from holdfast.core.reading import OPEN, STRICT, excerpt, misfit, newer_schema, parsed
from holdfast.core.types import HoldfastError, Measure

SCHEMA = 3
"""2 added what an attack costs and how it went, 3 what it had cost at each milestone, its family, whether it draws, and the rule
that ended it early. Records of 1 and 2 are read with those left open."""

PLAN = "campaign.json"
"""The plan's file, the first that a campaign writes: a folder that has it is a campaign's."""

FOREIGN = " (undefended tokenizer)"
"""Ends the name of an attack that is run with the undefended model's tokenizer, beside the same attack with the model's own."""

Schema = Annotated[int, Field(ge=1, le=SCHEMA)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
"""What a table of records can hold as a whole number."""
Seed = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Number = Annotated[float, Field(ge=-1e39, le=1e39)]
"""Anything that is measured in single precision, and whose square is a number."""
Amount = Annotated[float, Field(ge=0, le=1e39)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[^/\x00]{1,200}$")]
"""What may be part of a file's name."""
Status = Literal["finished", "diverged", "failed"]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Record:
    """One value, measured after `step` updates of an attack (0: before the first)."""

    kind: Literal["record"] = "record"
    cell: str
    """identity of the cell it belongs to"""
    step: Count
    evaluation: str
    """the preset or question set that measured it, such as "hazard" or "benign_outside_retain\""""
    metric: str
    measures: Measure
    value: Number
    stderr: Amount | None
    n: Count
    chance: Annotated[float, Field(ge=0, le=1)] | None = None
    complete: bool = True
    """False where only a fixed sample of the questions was asked"""
    schema: Schema = SCHEMA


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One attack (or none) on one model with one seed: what it was, how it ended, what was measured."""

    kind: Literal["cell"] = "cell"
    cell: str
    """content identity: 16 hexadecimal digits over everything in `identity`"""
    model: str
    """the model's label in this campaign"""
    model_digest: str
    attack: str
    """the attack's preset name; "none" for what is measured on the untouched model only"""
    attack_config: dict[str, Any]
    seed: Seed
    status: Status
    reason: str = ""
    """why it did not finish, in one sentence"""
    milestones: list[Count] = field(default_factory=list)
    losses: list[tuple[Count, Number]] = field(default_factory=list)
    """(step, the attacker's own loss), thinned"""
    first_loss: Number | None = None
    """mean of the attacker's own loss over its first updates"""
    last_loss: Number | None = None
    """mean of the attacker's own loss over its last updates"""
    gradient_norms: list[tuple[Count, Amount]] = field(default_factory=list)
    """(step, norm of the gradients that the attack took), thinned; of the adapters alone for LoRA; none where it takes none"""
    update_size: Amount | None = None
    """how far the weights moved in all, relative to their norm before the attack"""
    moved_share: Share | None = None
    """the share of weights that moved, of those in rows where any did"""
    costs: list[tuple[Count, Count, Amount]] = field(default_factory=list)
    """(step, tokens, FLOPs) so far, at each milestone after the first"""
    tokens: Count | None = None
    """tokens that the attack read"""
    flops: Amount | None = None
    """FLOPs that it took, counted from the shapes of its forward and backward passes"""
    peak_memory: Count | None = None
    """bytes that the cell needed at its peak, measuring included: on a GPU what torch held, else the whole process"""
    family: str = ""
    """the attack's family in words, which may be named where its settings may not"""
    draws: bool = True
    """False where its path depends on no seed, so that one run is all that there is to see"""
    transfers: bool = False
    """the attack's update was computed on the model before the safeguard"""
    stopped: str = ""
    """the rule that ended it before its last step, in words; empty: none did"""
    seen_in_training: bool = False
    """the safeguard was trained against an adversary of this kind"""
    family_in_training: bool = False
    """the safeguard was trained against an adversary of this family, whatever its settings"""
    seconds: Amount = 0.0
    evaluation_seconds: Amount = 0.0
    identity: dict[str, Any] = field(default_factory=dict)
    """what `cell` is the hash of"""
    environment: dict[str, Any] = field(default_factory=dict)
    """versions and hardware; no part of the identity"""
    records: list[Record] = field(default_factory=list)
    schema: Schema = SCHEMA

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"

    def write(self, path: Path) -> None:
        """Write header and records as JSON lines, all or nothing."""
        header = asdict(self)
        lines = [header, *header.pop("records")]
        write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> CellResult:
        """Read one cell's file, which is named after its cell.

        Raises:
            HoldfastError: the file is no record file, or has a newer schema.
        """
        try:
            content = b"[" + b",\n".join(path.read_bytes().splitlines()) + b"]"
            return _cell(path.stem, parsed(_LINES, content))
        except ValueError as error:
            if (newer := newer_schema(error)) is not None:
                raise HoldfastError(
                    f"{path} has records of schema {newer}; this holdfast reads up to {SCHEMA}"
                ) from error
            raise HoldfastError(
                f"{path} is not a holdfast record file ({misfit(error, lines=True)}); remove it"
            ) from error


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class CampaignPlan:
    """What a campaign set out to do, beside its cells: enough to read the folder without the code that made it."""

    title: str
    domain: str
    suite: str
    models: dict[str, str]
    """label -> what it is: "undefended", "reference", "defended", "peer", "never-exposed" or "destroyed\""""
    cells: list[Name]
    """identities of the cells, in order"""
    attacks: list[str] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """provenance: paths, digests, cards, costs"""
    schema: Schema = SCHEMA

    def write(self, folder: Path) -> None:
        write_text(folder / PLAN, json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> CampaignPlan:
        path = folder / PLAN
        if not path.is_file():
            raise HoldfastError(
                f"{folder} holds no audit: it has no campaign.json; give a folder that holdfast audit wrote"
            )
        try:
            plan: CampaignPlan = parsed(_PLAN, path.read_bytes())
            _DETAILS.validate_python({"details": plan.details})
            read_findings(plan.details)
            return plan
        except ValueError as error:
            if (newer := newer_schema(error)) is not None:
                raise HoldfastError(f"{path} has schema {newer}; this holdfast reads up to {SCHEMA}") from error
            raise HoldfastError(
                f"{path} cannot be read ({misfit(error)}); run the audit again into a new folder"
            ) from error


@with_config(OPEN)
class _Provenance(TypedDict, total=False):
    """The fields that holdfast reads of a model's entry in a plan's details."""

    path: str
    digest: str
    stages: list[str]
    seconds: Amount
    tokens: Amount
    flops: Amount
    seed: Seed | None
    base: str


@with_config(OPEN)
class _Beside(TypedDict):
    """How a model's folder compares with the undefended model's (`engine.likeness`)."""

    distance: Amount | None
    texts: Count
    differing: Count
    merged: Count


@with_config(OPEN)
class _Details(TypedDict, total=False):
    """The fields that holdfast reads of a plan's details."""

    command: str
    protocol: int
    models: dict[str, _Provenance]
    searched: list[str]
    uses_base: list[str]
    base: str
    left_out: list[str]
    without_control: list[str]
    sibling: str
    compared: dict[str, _Beside]
    canonical: str
    worst: str
    notes: list[str]
    not_built: dict[str, str]


_LINES = TypeAdapter(list[Annotated[CellResult | Record, Field(discriminator="kind")]])
_PLAN = TypeAdapter(CampaignPlan)
_DETAILS = TypeAdapter(dict[str, _Details])


def _cell(name: str, lines: list[CellResult | Record]) -> CellResult:
    """A cell's file as one value.

    Raises:
        ValueError: the lines are not one header and then its records, belong to another cell, or a share is not from 0 to 1.
    """
    if not lines or not isinstance(lines[0], CellResult):
        raise ValueError("line 1 is no cell")
    records = []
    for number, line in enumerate(lines, start=1):
        if line.cell != name:
            raise ValueError(f"line {number}, cell: the file is named after cell {name}, not {line.cell}")
        if isinstance(line, Record):
            share = line.metric == "accuracy" or line.chance is not None
            if share and not 0 <= line.value <= 1:
                raise ValueError(f"line {number}, value: an accuracy is from 0 to 1, not {line.value}")
            records.append(line)
    if len(records) < len(lines) - 1:
        raise ValueError("two of its lines are cells")
    return replace(lines[0], records=records)


def plain_attack(name: str) -> str:
    """The attack's name, whichever tokenizer it is run with."""
    return name.removesuffix(FOREIGN)


def cell_path(folder: Path, cell: str) -> Path:
    return folder / "cells" / f"{cell}.jsonl"


def read_campaign(folder: Path) -> tuple[CampaignPlan, list[CellResult]]:
    """The plan and its ended cells, in the plan's order.

    Raises:
        HoldfastError: the folder holds no campaign, none of its cells has ended, or a cell is none of the plan's.
    """
    plan = CampaignPlan.read(folder)
    # Two attacks of one content are one cell, which counts once.
    paths = [cell_path(folder, cell) for cell in dict.fromkeys(plan.cells)]
    results = [planned(CellResult.read(path), plan, path) for path in paths if path.is_file()]
    if not results:
        raise HoldfastError(f"no cell of the campaign in {folder} has ended yet; run the same command again to go on")
    return plan, results


def campaign_hash(folder: Path) -> str:
    """SHA-256 of the files that `read_campaign` reads, as a shell in the folder computes it.

    `sha256sum campaign.json cells/*.jsonl | sha256sum` hashes the same list: a line for each file, `<SHA-256>  <name>`, the plan
    first and then the cells by name.
    """
    plan = CampaignPlan.read(folder)
    cells = sorted(path for cell in set(plan.cells) if (path := cell_path(folder, cell)).is_file())
    lines = [
        f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in (folder / PLAN, *cells)
    ]
    return sha256("".join(lines).encode()).hexdigest()


def planned(result: CellResult, plan: CampaignPlan, path: Path) -> CellResult:
    """The result, which is checked to be one of what its campaign set out to do.

    Raises:
        HoldfastError: its model or its attack is none of the plan's.
    """
    attack = plain_attack(result.attack)
    attacks = ["none", *plan.attacks] if plan.attacks else [attack]
    for name, where, known in ((result.model, "models", list(plan.models)), (attack, "attacks", attacks)):
        if name not in known:
            raise HoldfastError(
                f"{path} is no cell of {path.parents[1] / 'campaign.json'}, whose {where} lack {excerpt(name)}; remove it"
            )
    return result


def select(results: Iterable[CellResult], **wanted: Any) -> list[CellResult]:
    """The results whose fields have the wanted values."""
    return [result for result in results if all(getattr(result, name) == value for name, value in wanted.items())]
