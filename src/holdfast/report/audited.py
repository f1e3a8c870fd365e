"""One audit as every chapter of a report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.core.findings import Findings, read_findings
from holdfast.core.records import CampaignPlan, CellResult
from holdfast.core.release import Release
from holdfast.report.public import model_details, publish
from holdfast.report.words.names import Names
from holdfast.stats.audit import AuditFigures, figures
from holdfast.stats.figures import CampaignSummary, ModelSummary
from holdfast.stats.honesty import Reason, reasons, withhold
from holdfast.stats.rules import Elicitation, elicitation
from holdfast.stats.summary import measured, summarise


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One audit: its records, its figures, and what its attacks are called."""

    plan: CampaignPlan
    results: Sequence[CellResult]
    summary: CampaignSummary
    figures: AuditFigures
    reasons: tuple[Reason, ...]
    """what the checks say, whether they fire or not; in public only those that tell no setting and no single run"""
    unsaid: tuple[Reason, ...] = ()
    """the checks that are left out in public"""
    data: Findings | None = None
    """what was noticed about the rows and questions; None where the plan is older than such a look"""
    names: Names = Names()
    public: bool = False
    """whether all of the above was made from records without secrets"""
    efforts: Mapping[str, Elicitation] = field(default_factory=dict)
    """label -> how hard the attacks tried: counts alone, which tell no setting"""
    release: Release | None = None
    """what a person states; in public without what is for the internal report"""

    @property
    def judged(self) -> list[ModelSummary]:
        """The models that get a verdict: the defended ones, else the reference."""
        defended = [model for model in self.summary.models if model.role == "defended"]
        return defended or [model for model in self.summary.models if model.role == "reference"]

    def role(self, role: str) -> ModelSummary | None:
        """The first model of a role."""
        return next((model for model in self.summary.models if model.role == role), None)

    def details(self, label: str) -> Mapping[str, Any]:
        """The plan's entries for one model."""
        return model_details(self.plan, label)


def audited(
    plan: CampaignPlan, results: Sequence[CellResult], *, public: bool = False, release: Release | None = None
) -> Audited:
    """Read a campaign; a public reading shows families instead of attacks, and no settings, commands or paths."""
    summary = summarise(plan, results)
    checks, unsaid = reasons(plan, results, summary), tuple[Reason, ...]()
    names, data = Names(), read_findings(plan.details)
    searched = bool(plan.details.get("searched"))
    efforts = {model.label: elicitation(summary, results, checks, model, searched) for model in summary.models}
    if public:
        plan, results, names = publish(plan, results)
        # What was found in the records withholds the same verdicts, though not all of them is published.
        summary = withhold(measured(plan, results), checks)
        unsaid = tuple(check for check in checks if not check.public)
        checks = tuple(check for check in checks if check.public)
        release = None if release is None else release.published
    return Audited(
        plan=plan,
        results=results,
        summary=summary,
        figures=figures(plan, results, summary),
        reasons=checks,
        unsaid=unsaid,
        data=data,
        names=names,
        public=public,
        efforts=efforts,
        release=release,
    )
