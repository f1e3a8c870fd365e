"""What verbs say to programs: with `--json` a verb prints one of these as JSON.

The schema is made from the dataclasses: `python -m holdfast.cli.documents docs/commands.schema.json` writes it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, with_config

from holdfast.core.files import write_text
from holdfast.core.reading import STRICT

SCHEMA = 1
"""of every document; raised when a field changes its meaning or goes"""


@dataclass(frozen=True, kw_only=True)
class Document:
    """What all documents have."""

    schema: int = SCHEMA
    next: str | None = None
    """the command that is suggested next; null where there is none"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """One measured number."""

    evaluation: str
    measures: str
    metric: str
    value: float | None
    """null where it is not finite"""
    stderr: float | None
    n: int
    chance: float | None


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Scores(Document):
    """`evaluate`."""

    kind: Literal["scores"] = "scores"
    model: str
    domain: str
    scores: list[ScoreLine]
    noticed: list[str]
    """sentences on the rows and questions that were measured with"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class VerdictLine:
    """The verdict on one model under test."""

    model: str
    verdict: str
    word: str
    """the verdict as the page shows it: also "breached before any attack\""""
    headline: str
    """one sentence of at most 25 words"""
    grounds: str
    attacks: str
    """the attacks that decide, with commas between"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """The figures of one model: fractions from 0 to 1, or nats where `hazard_metric` and `ability_metric` say so."""

    model: str
    role: str
    verdict: str | None
    """null for controls, about which nothing is decided"""
    hazard_before: float | None
    hazard_mean: float | None
    """after attack, over all attacks"""
    hazard_worst: float | None
    """the greatest mean over seeds at any milestone, and before any attack, with ability kept"""
    worst_attack: str | None
    ability_before: float | None
    ability_after: float | None
    """where hazard is worst"""
    resisted: int
    """attacks resisted with ability kept"""
    counted: int
    """attacks that count"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Audit(Document):
    """One audit: `audit`, `attack`, `demo`; and a part of `report`."""

    kind: Literal["audit"] = "audit"
    title: str
    folder: str
    report: str
    hazard_metric: str
    ability_metric: str
    verdicts: list[VerdictLine]
    models: list[ModelLine]
    noticed: list[str]
    failed: list[str]
    """why runs failed, one sentence a run"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Report(Document):
    """`report`."""

    kind: Literal["report"] = "report"
    public: bool
    html: str
    markdown: str
    json: str
    audits: list[Audit]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class PlanLine:
    """An audit with a number of seeds, before it is run."""

    seeds: int
    runs: int
    detectable: float | None
    """distance from the threshold that one attack's interval finds, as a fraction; null with too few seeds"""
    detectable_suite: float | None
    """the same above the threshold for one attack of the suite, corrected for all of them"""
    seconds: float
    """with the processes that were asked for"""
    tokens: float
    flops: float


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Plan(Document):
    """`audit --plan`."""

    kind: Literal["plan"] = "plan"
    seeds: int
    """that were asked for: one of the variants"""
    workers: int
    attacks: int
    questions: int
    """of hazard"""
    measuring: float
    """share of the work that is measuring"""
    variants: list[PlanLine]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class StandingLine:
    """The runs of one model."""

    model: str
    planned: int
    finished: int
    diverged: int
    failed: int


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Standing(Document):
    """`--status`."""

    kind: Literal["standing"] = "standing"
    what: str
    folder: str
    working: bool
    """whether a holdfast works in the folder"""
    done: int
    left: int
    running: list[str]
    failed: list[str]
    seconds: float
    """spent so far: of work for an audit, of time for all else"""
    seconds_left: float | None
    models: list[StandingLine]
    """of an audit alone"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Search(Document):
    """`search`."""

    kind: Literal["search"] = "search"
    folder: str
    report: str
    """of the confirmation"""
    search: dict[str, Any]
    """what `search.json` holds: budget, trials, winner, confirmation"""
    failed: list[str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Study(Document):
    """`study`."""

    kind: Literal["study"] = "study"
    study: str
    tables: str
    """the file of Markdown"""
    figures: Any
    """what `tables.json` holds"""
    failed: list[str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Estimate(Document):
    """`study --estimate`."""

    kind: Literal["estimate"] = "estimate"
    study: str
    hours: float
    workers: int


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Comparison(Document):
    """`compare`."""

    kind: Literal["comparison"] = "comparison"
    html: str
    groups: Any
    """what the `.json` beside the page holds: a group of models that may be ranked each"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Written(Document):
    """`card`, `records`, `release`."""

    kind: Literal["written"] = "written"
    path: str
    records: int | None = None
    """rows of the table; null for what is no table"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Begun(Document):
    """`init`."""

    kind: Literal["begun"] = "begun"
    what: Literal["attack", "safeguard", "evaluation", "domain"]
    path: str
    """the plug-in's file, or the domain's folder"""
    test: str


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """The predicted peak of one stage or attack, in bytes by part."""

    preset: str
    device: dict[str, int]
    """empty where the model is on the host"""
    host: dict[str, int]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Memory(Document):
    """`safeguard --plan` and `attack --plan`."""

    kind: Literal["memory"] = "memory"
    device: str
    free: int | None
    """bytes; null where the system does not tell"""
    sentence: str
    """whether the largest peak fits, and what was turned"""
    turned: list[str]
    """the options that --memory turned, as on the command line"""
    stages: list[MemoryLine]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Safeguarded(Document):
    """`safeguard`."""

    kind: Literal["safeguarded"] = "safeguarded"
    model: str
    made_before: bool
    """whether the same model was there already"""
    effect: list[str]
    """sentences on what the safeguard did"""
    card: dict[str, Any]
    """what `holdfast.json` in the model's folder holds"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Testbed(Document):
    """`testbed`."""

    kind: Literal["testbed"] = "testbed"
    folder: str
    known: dict[str, tuple[int, int]]
    """kind of fact -> how many the model knows, of how many; of real facts alone"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class FamilyLine:
    """Presets of one module."""

    about: str
    presets: list[str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class SuiteLine:
    """A suite of attacks."""

    name: str
    version: int
    about: str
    canonical: str
    attacks: list[str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Listing(Document):
    """`list`; null where only another part was asked for."""

    kind: Literal["list"] = "list"
    safeguards: list[FamilyLine] | None = None
    attacks: list[FamilyLine] | None = None
    evaluations: list[FamilyLine] | None = None
    suites: list[SuiteLine] | None = None


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class FieldLine:
    """A field of a preset."""

    name: str
    type: str
    value: Any
    """nested plug-ins are objects with their `class`"""
    meaning: str


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class PresetLine:
    """One preset with its fields."""

    name: str
    plugin: str
    """its class"""
    about: str
    fields: list[FieldLine]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class DomainMade(Document):
    """`domain make`."""

    kind: Literal["domain-made"] = "domain-made"
    domain: str
    folder: str
    rows: dict[str, int]
    """role -> its rows"""
    questions: dict[str, int]
    """name of a set -> its questions"""
    sources: list[dict[str, Any]]
    """what was read, as `made.json` in the folder states it"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class DomainChecked(Document):
    """`domain check`."""

    kind: Literal["domain-checked"] = "domain-checked"
    name: str
    max_length: int
    model: str | None
    roles: list[dict[str, Any]]
    sets: list[dict[str, Any]]
    findings: dict[str, Any]
    """overlaps, and prompts that run into their options, as a plan has them"""
    missing: list[dict[str, Any]]
    """what cannot run for want of what"""
    stops: list[str]
    """what would stop a run; empty: nothing"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Presets(Document):
    """`list NAME`."""

    kind: Literal["presets"] = "presets"
    presets: list[PresetLine] = field(default_factory=list)
    """one, unless plug-ins of two kinds have the name"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Verified(Document):
    """`verify`."""

    kind: Literal["verified"] = "verified"
    folder: str
    sound: bool
    """whether nothing was found wrong"""
    sentences: list[str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Reproduced(Document):
    """`reproduce`."""

    kind: Literal["reproduced"] = "reproduced"
    file: str
    agrees: bool | None
    """whether the audits agree; null where only the plan was asked for"""
    audit: Audit | None
    """the audit that was made again"""
    sentences: list[str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Calibrated(Document):
    """`calibrate`."""

    kind: Literal["calibrated"] = "calibrated"
    file: str
    """of the proposed stages"""
    layers: list[dict[str, Any]]
    """the lengths of hidden states after each layer, and where attention sinks are"""
    safeguards: list[dict[str, Any]]
    """terms, trials and what is proposed, a table each"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Exported(Document):
    """`export`."""

    kind: Literal["exported"] = "exported"
    form: str
    folder: str
    names: list[str]
    """logs, attacks or tasks that were written"""
    left_out: list[str]
    """attacks that the other tool has no name for"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Imported(Document):
    """`import`."""

    kind: Literal["imported"] = "imported"
    path: str
    attacks: list[str]
    """labels of the suite's attacks"""
    left_out: dict[str, str]
    """what was read and is not in the suite, with the reason"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Pushed(Document):
    """`push`."""

    kind: Literal["pushed"] = "pushed"
    repository: str
    public: bool
    files: list[str]
    size: int
    """bytes"""
    address: str | None
    """of the commit; null where nothing was uploaded"""


AnyDocument = Annotated[
    Scores | Audit | Report | Plan | Standing | Search | Study | Estimate | Comparison | Written | Safeguarded | Memory | Testbed
    | DomainMade | DomainChecked | Begun | Listing | Presets | Verified | Reproduced | Calibrated | Exported | Imported
    | Pushed,
    Field(discriminator="kind"),
]  # fmt: skip


def as_json(document: Document) -> str:
    """A document as JSON text, its kind and schema first. A number that is not finite is null."""
    values = asdict(document)
    first = {name: values.pop(name) for name in ("kind", "schema")}
    return json.dumps(_plain({**first, **values}), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def schema() -> dict[str, Any]:
    """The JSON Schema of every document."""
    made = TypeAdapter(AnyDocument).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "What --json prints", **made}


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), json.dumps(schema(), indent=1) + "\n")
