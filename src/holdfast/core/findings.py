"""What was noticed about a domain's rows and questions before a run, as the plan of the run keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, with_config

from holdfast.core.reading import OPEN


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two sets of a domain, by role or by `questions_of`, of which one has something of the other."""

    one: str
    other: str
    same: int
    """members of `one` that `other` has too: equal rows, equal questions, or questions that a row answers"""
    near: int
    """members of `one` that `other` has nearly"""
    of: int
    """members of `one`"""


def questions_of(name: str) -> str:
    """What findings call a question set, to tell it from a role."""
    return f"questions {name}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The rows of one role, and how many of them are longer than the domain's `max_length`."""

    role: str
    rows: int
    cut: int
    """rows that lose their end"""
    empty: int
    """rows that have nothing left to learn"""


@dataclass(frozen=True, kw_only=True)
class RunTogether:
    """A question set whose prompts and options run together without a blank."""

    questions: str
    count: int
    of: int


@with_config(OPEN)
@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was noticed about the data of one run."""

    compared: list[str] = field(default_factory=list)
    """roles and question sets that were compared with each other; of others nothing is known"""
    overlaps: list[Overlap] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    """roles of which rows are cut"""
    run_together: list[RunTogether] = field(default_factory=list)


_FINDINGS = TypeAdapter(Findings)


def read_findings(details: dict[str, Any]) -> Findings | None:
    """The findings among a plan's details; None where the plan was made before there were any.

    Raises:
        ValidationError: they are not what `Findings` holds.
    """
    return _FINDINGS.validate_json(json.dumps(details["data"])) if "data" in details else None
