"""One audit as every chapter of a report reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.core.findings import Findings, read_findings
from holdfast.core.records import CampaignPlan, CellResult
from holdfast.core.release import Release
from holdfast.report.public import model_details, publish
from holdfast.report.words.names import Names
from holdfast.stats.audit import AuditFigures, figures
from holdfast.stats.cells import NO_ATTACK
from holdfast.stats.endings import endings
from holdfast.stats.figures import CampaignSummary, ModelSummary
from holdfast.stats.gates import Gates, gates
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
    name: str = "c1"
    """prefix of the ids of this audit's part of the page"""

    @property
    def original(self) -> str:
        """What the attacks that read a model from before the safeguard had."""
        return "a sibling of the original model" if self.plan.details.get("sibling") else "the original model"

    @property
    def judged(self) -> list[ModelSummary]:
        """The models that get a verdict: the defended ones, else the reference."""
        defended = [model for model in self.summary.models if model.role == "defended"]
        return defended or [model for model in self.summary.models if model.role == "reference"]

    def role(self, role: str) -> ModelSummary | None:
        """The first model of a role."""
        return next((model for model in self.summary.models if model.role == role), None)

    def families(self, attacks: Iterable[str]) -> list[str]:
        """The families of attacks in plain words, each once; those of unknown family are left out."""
        known = {result.attack: result.family for result in self.results if result.family}
        return list(dict.fromkeys(known[attack] for attack in attacks if attack in known))

    def plain(self, attack: str) -> str:
        """An attack by its family in plain words, where that is known, else by its name."""
        attack = self.names.stand_ins.get(attack, attack)
        return next(iter(self.families([attack])), self.names(attack))

    def runs(self, model: str, attack: str) -> str:
        """The id of the first run of an attack on a model; in public, which shows no runs, that of the table of families."""
        attack = self.names.stand_ins.get(attack, attack)
        if attack == NO_ATTACK or not any((c.model, c.attack) == (model, attack) for c in self.summary.cells):
            return ""
        if self.public:
            return self.chapter("families")
        labels, attacks = [m.label for m in self.summary.models], [a.name for a in self.summary.attacks]
        return f"{self.name}-run-{labels.index(model)}-{attacks.index(attack)}"

    def chapter(self, key: str) -> str:
        """The id of a chapter."""
        return f"{self.name}-{key}"

    def gates(self, model: ModelSummary) -> Gates:
        """The five figures of a model under test, each with its gate."""
        return gates(
            self.summary,
            model,
            self.figures.of(model.label),
            (*self.reasons, *self.unsaid),
            endings(self.summary),
        )

    def details(self, label: str) -> Mapping[str, Any]:
        """The plan's entries for one model."""
        return model_details(self.plan, label)


def audited(
    plan: CampaignPlan,
    results: Sequence[CellResult],
    *,
    public: bool = False,
    release: Release | None = None,
    name: str = "c1",
) -> Audited:
    """Read a campaign; a public reading shows families instead of attacks, and no settings, commands or paths.

    Args:
        plan: of the campaign.
        results: its cells that have ended.
        public: whether the page is for others.
        release: what a person states.
        name: prefix of the ids on the page.
    """
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
        name=name,
    )
