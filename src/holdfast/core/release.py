"""`release.toml`: what only a person can say about a release. Whatever the file leaves out is "not stated" in a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date as Day
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, with_config

from holdfast.core.escape import for_terminal
from holdfast.core.files import write_text
from holdfast.core.presets import field_docs
from holdfast.core.reading import STRICT, misfit, parsed, parsed_toml
from holdfast.core.types import HoldfastError

FILE = "release.toml"
"""The file's name in an audit's folder, where reports find it."""

Outcome = Literal["accept", "accept with conditions", "reject"]
Relation = Literal["independent", "same organisation", "made the safeguard"]
Text = Annotated[str, Field(max_length=2000)]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Tier:
    """A kind of attacker, and what such an attacker can spend."""

    name: Text
    """such as "one person with one graphics card\""""
    flops: Annotated[float, Field(gt=0, le=1e39)]
    """training compute that the attacker can spend, such as 1e18"""
    original: bool = False
    """whether the attacker has the model before the safeguard too"""
    why: Text = ""
    """why such an attacker matters here"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The best comparable model that is public already, for the marginal hazard of this release."""

    label: Text
    """its label in the audit; --peer adds a model to an audit"""
    why: Text = ""
    """why this one is the best comparable"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class SafeReference:
    """A model whose risk was found acceptable, with which this model is compared."""

    label: Text
    """its label in the audit"""
    margin: Annotated[float, Field(ge=0, le=1)]
    """how much more hazard still counts as the same, as a fraction of the questions, such as 0.02"""
    why: Text = ""
    """why the model may serve as a safe reference"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Independence:
    """Who made the audit, and how that person stands to whoever releases the model."""

    auditor: Text = ""
    """who answers for the audit"""
    relation: Relation | None = None
    """independent, same organisation, or made the safeguard"""
    qualification: Text = ""
    """what qualifies the auditor"""
    statement: Text = ""
    """who paid, what access was given, who could stop a publication"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided."""

    outcome: Outcome
    """accept, accept with conditions, or reject"""
    by: Text = ""
    """who decided"""
    conditions: list[Text] | None = None
    """under which the decision holds"""
    why: Text = ""
    """how the decision was made, and what outside advice went into it"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Change:
    """One line of the changelog."""

    version: Text
    """that the change led to"""
    date: Day
    """of the change"""
    what: Text
    """what changed"""
    why: Text = ""
    """why it changed"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Release:
    """What a person states about the release of an audited model. Everything but `notes` appears in the public report."""

    version: Text = ""
    """of this statement"""
    date: Day | None = None
    """of this version"""
    expires: Day | None = None
    """after which nobody should rely on the audit"""
    voids: list[Text] | None = None
    """conditions under which the audit no longer holds, beside those that the report lists itself"""
    forecast: Text = ""
    """how the safeguard's effect is expected to change, until when, and how probable that is"""
    validity: Text = ""
    """how far the questions stand for the harm that matters"""
    use: Text = ""
    """how the model will be used, and what it will be built into"""
    notes: Text = ""
    """for the internal report alone"""
    tiers: list[Tier] | None = None
    """kinds of attackers with their budgets, the least first"""
    baseline: Baseline | None = None
    """the best comparable model that is public already"""
    reference: SafeReference | None = None
    """a model whose risk was found acceptable"""
    independence: Independence | None = None
    """who made the audit"""
    decision: Decision | None = None
    """what was decided"""
    changes: list[Change] | None = None
    """the changelog, the latest first"""

    @property
    def published(self) -> Release:
        """The same without what is for the internal report alone."""
        return replace(self, notes="")

    def check(self, labels: list[str]) -> None:
        """Check that the models that are named are in the audit.

        Raises:
            HoldfastError: one is not.
        """
        for place, named in (("baseline", self.baseline), ("reference", self.reference)):
            if named is not None and named.label not in labels:
                raise HoldfastError(
                    f"{FILE}: {place}.label {named.label!r} is no model of the audit; it has {', '.join(labels)}"
                )


_RELEASE = TypeAdapter(Release)


def read_release(path: Path) -> Release:
    """Read a statement.

    Raises:
        HoldfastError: there is no such file, or it does not fit; the message says where.
    """
    try:
        table = parsed_toml(path.read_bytes())
        release: Release = parsed(_RELEASE, json.dumps(table, default=str).encode())
    except OSError as error:
        raise HoldfastError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise HoldfastError(f"{path} cannot be read: {misfit(error)}") from error
    return release


def keep_release(path: Path, folder: Path) -> None:
    """Put a statement that was read into an audit's folder, where every report of the audit finds it."""
    target = folder / FILE
    if path.resolve() != target.resolve():
        write_text(target, path.read_text(encoding="utf-8-sig"))


_TABLES: dict[str, tuple[type, bool]] = {
    "tiers": (Tier, True),
    "baseline": (Baseline, False),
    "reference": (SafeReference, False),
    "independence": (Independence, False),
    "decision": (Decision, False),
    "changes": (Change, True),
}
"""Field -> its class, and whether it is a list of tables."""
_EXAMPLES: dict[str, str] = {
    "flops": "1e18",
    "original": "false",
    "margin": "0.02",
    "outcome": '"accept with conditions"',
    "relation": '"independent"',
}


def template(labels: Sequence[str]) -> str:
    """A starting file: every field with what it means, none of it stated; `labels` are the audit's models."""
    lines = [
        '# What only a person can say about a release. A field that stays commented out is "not stated" in the report.'
    ]
    lines += ["# Everything but `notes` appears in the public report."]
    lines += [f"# Labels of the models: {', '.join(for_terminal(label) for label in labels)}", ""]
    for field in fields(Release):
        if field.name not in _TABLES:
            lines += _lines(field.name, str(field.type), field_docs(Release)[field.name])
    for name, (kind, several) in _TABLES.items():
        lines += ["", f"# {field_docs(Release)[name]}", f"# [[{name}]]" if several else f"# [{name}]"]
        for field in fields(kind):
            lines += _lines(field.name, str(field.type), field_docs(kind)[field.name])
    return "\n".join(lines) + "\n"


def _lines(name: str, kind: str, meaning: str) -> list[str]:
    example = _EXAMPLES.get(name) or ("2026-01-31" if "Day" in kind else '[""]' if "list" in kind else '""')
    return [f"# {name} = {example}    # {meaning}"]
