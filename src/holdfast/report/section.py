"""The section of a page about one audit: the first page and the chapters that may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.core.records import CampaignPlan, CellResult
from holdfast.core.release import Release
from holdfast.report.audited import Audited, audited
from holdfast.report.blocks import Chapter
from holdfast.report.chapters import chapters
from holdfast.report.first_page import FirstPage, first_page
from holdfast.report.sign_off import Signing
from holdfast.report.tables.verdict import VerdictRow, verdict_rows
from holdfast.report.words.numbers import count
from holdfast.report.words.verdict import Finding
from holdfast.report.words.warnings import warnings


@dataclass(frozen=True, kw_only=True)
class Section:
    """One audit on a page."""

    name: str
    """prefix of its ids"""
    audit: Audited
    page: FirstPage
    chapters: tuple[Chapter, ...]

    @property
    def title(self) -> str:
        """The title of the audit."""
        return self.audit.plan.title

    @property
    def subtitle(self) -> str:
        """The scope of the audit, in numbers."""
        plan, summary = self.audit.plan, self.audit.summary
        sizes = [f"{len(summary.models)} models", f"{len(summary.attacks)} attacks", count(len(summary.seeds), "seed")]
        return ", ".join([f"domain {plan.domain}", f"suite {plan.suite}", *sizes])

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The verdicts."""
        return self.page.findings

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings that weaken the verdicts."""
        return tuple(warnings(self.audit))

    @property
    def rows(self) -> tuple[VerdictRow, ...]:
        """The verdict table as texts, a row a model."""
        return tuple(verdict_rows(self.audit))


def section(
    plan: CampaignPlan,
    results: Sequence[CellResult],
    name: str,
    *,
    public: bool = False,
    release: Release | None = None,
    records: str = "",
    signing: Signing = Signing(),  # noqa: B008 - frozen
) -> Section:
    """Write one campaign; the public form has only the public records and the public chapters.

    Args:
        plan: of the campaign.
        results: its cells that have ended.
        name: prefix of the ids on the page.
        public: whether the page is for others.
        release: what a person states.
        records: the hash of the campaign's folder.
        signing: what only the person who makes the page can say.
    """
    if release is not None:
        release.check(list(plan.models))
    audit = audited(plan, results, public=public, release=release, name=name)
    page = first_page(audit, records=records, signing=signing)
    return Section(name=name, audit=audit, page=page, chapters=chapters(audit, name))
