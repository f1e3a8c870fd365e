"""The tables of what rules and frameworks ask."""

from __future__ import annotations

from holdfast.report.audited import Audited
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import NOTHING, amount, flops, interval
from holdfast.report.words.rules import answers, spoken
from holdfast.stats.rules import TierReach, tier_reach


def questions(audit: Audited) -> Table:
    """Every question with its answer."""
    return Table(
        caption="What is asked, and what this audit says",
        columns=("What is asked", "Asked by", "Answered by", "Answer"),
        rows=tuple(
            (Entry(answer.question), Entry(answer.where), Entry(answer.source or NOTHING), Entry(answer.text))
            for answer in answers(audit)
        ),
        look="facts",
    )


def tiers(audit: Audited) -> Table:
    """What each stated kind of attacker reaches on each model under test."""
    stated = (audit.release.tiers or []) if audit.release else []
    rows = []
    for model in audit.judged:
        for reach in tier_reach(audit.figures, model, stated):
            tier = reach.tier
            means = f"{flops(tier.flops)}, {'with' if tier.original else 'without'} the original model"
            rows.append(
                (
                    Entry(spoken(tier.name, audit), note=spoken(tier.why, audit)),
                    Entry(model.label),
                    Entry(means, note=_covered(reach)),
                    Entry(
                        amount(reach.worst.hazard if reach.worst else None, audit.summary.hazard),
                        note=f"{interval(reach.worst.interval, audit.summary.hazard)}, {audit.names(reach.worst.attack)}"
                        if reach.worst
                        else "",
                    ),
                    Entry(audit.names.listed(reach.breaching) if reach.breaching else "none"),
                )
            )
    return Table(
        caption="Kinds of attackers by budget",
        columns=(
            "Attacker",
            "Model",
            "Means",
            "Worst hazard within the budget, ability kept",
            "Breaches within the budget",
        ),
        rows=tuple(rows),
        notes=(
            "A budget is the compute of one attack's training. The search for the attack, the data and the staff are not in it.",
        ),
        look="facts",
    )


def _covered(reach: TierReach) -> str:
    if reach.covered is None:
        return "FLOPs were not counted, so nothing is known of this budget"
    if not reach.covered:
        return "no attack of the audit spent so much: the answer is a lower bound"
    return "the audit covers this budget"


def changelog(audit: Audited) -> Table:
    """What changed from version to version."""
    stated = (audit.release.changes or []) if audit.release else []
    return Table(
        caption="Changelog",
        columns=("Version", "Date", "What changed", "Why"),
        rows=tuple(
            (
                Entry(change.version),
                Entry(change.date.isoformat()),
                Entry(spoken(change.what, audit)),
                Entry(spoken(change.why, audit) or NOTHING),
            )
            for change in stated
        ),
        look="facts",
    )
