"""The sign-off: what exactly was audited, who answers for the audit, and what was decided."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version

from holdfast.core.types import HoldfastError
from holdfast.report.audited import Audited
from holdfast.report.words.numbers import count

DECISIONS = ("accept", "accept with conditions", "reject")
"""what may be ticked by hand"""


@dataclass(frozen=True, kw_only=True)
class Signing:
    """What only the person who makes a page can say; what is left open is a line to fill in by hand."""

    auditor: str = ""
    date: str = ""
    """YYYY-MM-DD"""

    def __post_init__(self) -> None:
        if self.date and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", self.date):
            raise HoldfastError(f"the date {self.date!r} of the sign-off is none; write it as 2026-01-31")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One audited model."""

    model: str
    digest: str
    """SHA-256 over what is loaded of its folder, in full"""


@dataclass(frozen=True, kw_only=True)
class SignOff:
    """The strip at the top of the first page."""

    weights: tuple[Weights, ...]
    records: str
    """SHA-256 of the records that the page was made from; a page cannot hold its own hash"""
    files: str
    """what that hash is over"""
    versions: str
    signing: Signing
    decisions: tuple[str, ...]
    """empty in public: a decision is made on the internal report"""


def sign_off(audit: Audited, records: str, signing: Signing) -> SignOff:
    """The sign-off of one audit; `records` is the hash of its folder."""
    weights = []
    for model in audit.judged:
        digest = audit.details(model.label).get("digest") or next(
            (result.model_digest for result in audit.results if result.model == model.label), ""
        )
        weights.append(Weights(model=model.label, digest=str(digest)))
    ran = ", ".join(sorted({str(r.environment["holdfast"]) for r in audit.results if "holdfast" in r.environment}))
    here = version("holdfast")
    return SignOff(
        weights=tuple(weights),
        records=records,
        files=f"campaign.json and {count(len(audit.results), 'file')} of cells",
        versions=f"holdfast {here}" + (f", records by {ran}" if ran and ran != here else ""),
        signing=signing,
        decisions=() if audit.public else DECISIONS,
    )
