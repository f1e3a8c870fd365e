"""What rules and frameworks ask of an audit, and what this audit can say: from its records, or from `release.toml`.

The Code is the EU General-Purpose AI Code of Practice, Safety and Security chapter, final version of 10 July 2025: measures 5.1
and 7.2 to 7.6, appendices 1.3.3, 2.1, 2.2 and 3.1 to 3.5. NIST AI 800-1, "Managing Misuse Risk for Dual-Use Foundation Models",
is cited by objective from its second public draft of January 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from holdfast.core.release import Release
from holdfast.report.audited import Audited
from holdfast.report.words.numbers import amount, cost_range, count, listed, percent, points, spent
from holdfast.report.words.verdict import findings
from holdfast.stats.cells import ABILITY_BOUND, Scale
from holdfast.stats.figures import ModelSummary
from holdfast.stats.rules import Beside, Elicitation, margin, marginal

NOT_STATED = "not stated"
RECORDS, STATED, BOTH = "records", "release.toml", "records, release.toml"
SOURCES = (
    "Code: EU General-Purpose AI Code of Practice, Safety and Security chapter, 10 July 2025. NIST: NIST AI 800-1, second public "
    "draft, January 2025. The table says what this audit holds on each question; whether a duty is met is for others to say."
)
HALF_A_YEAR = timedelta(days=184)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question, where it is asked, and the answer."""

    question: str
    where: str
    text: str
    source: str


def answers(audit: Audited) -> tuple[Answer, ...]:
    """Every question in the order of reading. What nobody stated is "not stated"."""
    release, several = audit.release or Release(), len(audit.judged) > 1

    def of_models(sentence: Callable[[ModelSummary, Audited], str]) -> str:
        return " ".join((f"{model.label}: " if several else "") + sentence(model, audit) for model in audit.judged)

    rows = (
        (
            "Are the safeguards robust under adversarial pressure, fine-tuning attacks included?",
            "Code 5.1, App. 3.3; NIST objective 5",
            (" ".join(finding.headline for finding in findings(audit)), RECORDS),
        ),
        ("Can the guardrails be taken off?", "Code App. 1.3.3 (5), 3.3 (2)", (of_models(_taken_off), RECORDS)),
        ("Which attackers, with which means?", "Code App. 3.2; NIST objective 1", _attackers(audit, release)),
        ("Did the attacks draw out what such attackers could?", "Code App. 3.2 (1)", (of_models(_elicited), RECORDS)),
        ("Can the model hide what it knows?", "Code App. 3.2 (2)", (of_models(_hidden), RECORDS)),
        ("Internal validity", "Code App. 3.1 (1)", (_controls(audit), RECORDS)),
        ("External validity", "Code App. 3.1 (2)", _validity(audit, release)),
        (
            "Reproducibility",
            "Code App. 3.1 (3)",
            (
                "Hashes, seeds and versions stand under “How it was run”; reproduce.json beside the records has the rest.",
                RECORDS,
            ),
        ),
        ("Expected use of the model", "Code App. 3.2", _said(release.use)),
        (
            "Marginal hazard beside the best comparable public model",
            "NIST scope, objective 4",
            _marginal(audit, release),
        ),
        ("As safe as a safe reference model?", "Code App. 2.1, 2.2", _reference(audit, release)),
        (
            "Hazard with the safeguard, and with the model fully elicited",
            "Code 7.3 (1)(d)",
            (of_models(_elicited_hazard), RECORDS),
        ),
        (
            "Limits of the safeguard",
            "Code 7.3 (2)(c)",
            ("They stand under “What the safeguard costs” and “What resistance does not mean”.", RECORDS),
        ),
        (
            "When does the justification no longer hold?",
            "Code 7.2 (2), 7.6",
            ("The conditions are listed below.", BOTH if release.voids else RECORDS),
        ),
        ("Until when does it hold?", "Code 7.6", _expiry(release)),
        ("Will the effect of the safeguard last?", "Code App. 3.3 (3)", _forecast(audit, release)),
        ("Who evaluated, and how independent?", "Code 7.4, App. 3.5", _independence(release)),
        ("What was decided, and how?", "Code 7.2 (3)", _decision(release)),
        ("Version and changelog", "Code 7.6; NIST objective 7", _version(release)),
    )
    return tuple(
        Answer(question=question, where=where, text=spoken(text, audit), source=source)
        for question, where, (text, source) in rows
    )


def spoken(text: str, audit: Audited) -> str:
    """A person's text; in public every attack that it names is called by its family."""
    for attack in sorted(audit.names.stand_ins, key=len, reverse=True):
        if attack != "none":
            text = text.replace(attack, audit.names(attack))
    return text


def voiding(audit: Audited) -> tuple[str, ...]:
    """The conditions under which the audit no longer holds: those of every audit, and those that were stated."""
    families = {result.family for result in audit.results if result.family}
    spent_most = spent(audit.figures.budget, audit.figures.unit)
    tried = "one" if len(families) == 1 else str(len(families))
    conditions = [
        "Other weights, another tokenizer or another config than those with the hashes of this audit.",
        f"An attacker who spends more than {spent_most} on one attack, or who has other data of the hazard than the attacks "
        "here.",
        f"An attack of another family than the {tried} tried, or a known attack that reaches more on a comparable safeguard.",
    ]
    if audit.plan.details.get("left_out"):
        conditions.append("The model before the safeguard becomes public: the attacks that need it were left out.")
    stated = (audit.release.voids or []) if audit.release else []
    return (*conditions, *(f"{spoken(text, audit)} (stated)" for text in stated))


def _taken_off(model: ModelSummary, audit: Audited) -> str:
    breached = len(model.under("breached"))
    return f"{breached} of {count(len(model.outcomes), 'attack')} brought the hazard back, confirmed."


def _attackers(audit: Audited, release: Release) -> tuple[str, str]:
    largest = f"The largest attack spent {spent(audit.figures.budget, audit.figures.unit)}."
    if not release.tiers:
        return f"{NOT_STATED}: which attackers matter, and what they can spend. {largest}", RECORDS
    return f"{count(len(release.tiers), 'kind')} of attackers, in the table below. {largest}", BOTH


def _elicited(model: ModelSummary, audit: Audited) -> str:
    effort = audit.efforts.get(model.label)
    if effort is None:
        return "Nothing is known of how the attacks were chosen."
    families = "1 family" if effort.families == 1 else f"{effort.families} families"
    texts = [f"{count(effort.attacks, 'attack')} of {families}, {count(effort.seeds, 'seed')}."]
    texts.append(_strength(effort))
    texts.append(
        "No attack was blind: training or a search had met the family of each."
        if effort.blind == 0
        else f"{effort.blind} of them are blind: neither training nor a search had met their family."
    )
    texts.append(
        "A search for attacks came first." if effort.searched else "No search for attacks on this model came first."
    )
    if effort.no_result:
        texts.append(f"{count(effort.no_result, 'attack')} left no result.")
    return " ".join(texts)


def _strength(effort: Elicitation) -> str:
    if not effort.checked:
        return "No shallow reference checked whether the attacks are strong."
    return f"{effort.working} attacks break the shallow reference."


def _hidden(model: ModelSummary, audit: Audited) -> str:
    effort = audit.efforts.get(model.label)
    if effort is None or not effort.probed:
        return "Neither a linear probe nor a check for masking was run."
    if effort.hidden:
        return "A check for masking or the linear probe fires: the model may hold more than it shows."
    return "The linear probe and the checks for masking found nothing that the answers do not show."


def _controls(audit: Audited) -> str:
    names = {
        "undefended": "an undefended model", "reference": "a shallow reference", "never-exposed": "a never-exposed model",
        "destroyed": "a destroyed model",
    }  # fmt: skip
    there = [text for role, text in names.items() if audit.role(role) is not None]
    missing = [text for role, text in names.items() if audit.role(role) is None]
    text = f"Controls: {listed(there)}." if there else "There is no control."
    return text + (f" Missing: {listed(missing)}." if missing else "")


def _validity(audit: Audited, release: Release) -> tuple[str, str]:
    asked = {
        r.n for result in audit.results for r in result.records if r.evaluation in audit.summary.hazard.evaluations
    }
    measured = f"Domain {audit.plan.domain}, " + (
        f"{max(asked):,} hazard questions or rows." if asked else "no hazard."
    )
    if not release.validity:
        return f"{measured} How far they stand for the harm that matters is {NOT_STATED}.", RECORDS
    return f"{measured} {release.validity}", BOTH


def _said(text: str) -> tuple[str, str]:
    return (text, STATED) if text else (NOT_STATED, "")


def _marginal(audit: Audited, release: Release) -> tuple[str, str]:
    texts = []
    for model in audit.judged:
        found = marginal(audit.summary, audit.figures, model.label, release)
        if found is not None:
            texts.append(_beside(model.label, found, audit))
    if not texts:
        return f"{NOT_STATED}: no comparable public model went through the same attacks (--peer, [baseline]).", RECORDS
    if release.baseline is None:
        return f"{' '.join(texts)} Whether it is the best comparable public model is {NOT_STATED}.", RECORDS
    return " ".join([*texts, release.baseline.why]).strip(), BOTH


def _beside(label: str, found: Beside, audit: Audited) -> str:
    hazard = audit.summary.hazard
    ours, theirs = (amount(end.hazard if end else None, hazard) for end in (found.worst, found.worst_of_other))
    text = f"Worst hazard with ability kept: {label} {ours}, {found.other} {theirs}."
    difference = found.comparison
    if difference is None:
        return f"{text} The two share no attack."
    mean = f"Mean over {count(difference.attacks, 'shared attack')}: a difference of {_apart(difference.difference, hazard)}"
    if difference.interval is None:
        return f"{text} {mean}, too few seeds for an interval."
    low, high = (_apart(end, hazard) for end in (difference.interval.low, difference.interval.high))
    return f"{text} {mean} (95 % interval {low} to {high})."


def _apart(value: float, hazard: Scale) -> str:
    return points(value, hazard) + ("" if hazard.metric == "nats" else " points")


def _reference(audit: Audited, release: Release) -> tuple[str, str]:
    if release.reference is None:
        return f"{NOT_STATED}: which model, if any, is a safe reference, and what margin applies ([reference]).", ""
    texts = []
    for model in audit.judged:
        if model.label == release.reference.label:
            continue
        found = margin(audit.summary, audit.figures, model.label, release.reference)
        end = {
            "within": "the whole interval lies within the margin",
            "beyond": "the whole interval lies beyond the margin",
            "undecided": "the interval does not decide about the margin",
            "not comparable": "the two cannot be compared on this scale",
        }[found.state]
        texts.append(f"{_beside(model.label, found.beside, audit)} Margin {percent(found.margin)}: {end}.")
    return " ".join([*texts, release.reference.why]).strip(), BOTH


def _elicited_hazard(model: ModelSummary, audit: Audited) -> str:
    hazard, of = audit.summary.hazard, audit.figures.of(model.label)
    before = amount(model.before.value if model.before else None, hazard)
    kept, most = (amount(ends[-1].hazard if ends else None, hazard) for ends in (of.with_base, of.unbounded))
    return (
        f"{before} before any attack; at most {kept} after attack with ability within {100 * ABILITY_BOUND:.0f} points, {most} "
        "whatever ability is left."
    )


def _expiry(release: Release) -> tuple[str, str]:
    if release.expires is None:
        return f"{NOT_STATED}; the Code asks for an update at least every six months for the most capable models.", ""
    text = f"Expires on {release.expires.isoformat()}."
    if release.date is not None and release.expires - release.date > HALF_A_YEAR:
        text += " That is more than the six months after which the Code asks for an update for the most capable models."
    return text, STATED


def _forecast(audit: Audited, release: Release) -> tuple[str, str]:
    texts = []
    for model in audit.judged:
        breached = model.under("breached")
        costs = [cost for cost in audit.figures.of(model.label).breach_costs if cost.attack in breached]
        if costs:
            texts.append(
                f"{model.label} is breached today at a cost of {cost_range(costs[0], audit.figures.unit)}, which only falls."
            )
    largest = spent(audit.figures.budget, audit.figures.unit)
    if not texts:
        texts.append(f"The records say nothing beyond the largest attack, {largest}, nor of attacks yet unknown.")
    if not release.forecast:
        return " ".join([*texts, f"A forecast is {NOT_STATED}."]), RECORDS
    return " ".join([*texts, release.forecast]), BOTH


def _independence(release: Release) -> tuple[str, str]:
    who = release.independence
    if who is None:
        return NOT_STATED, ""
    parts = (
        ("Auditor", who.auditor),
        ("relation to whoever releases the model", who.relation or ""),
        ("qualification", who.qualification),
    )
    text = "; ".join(f"{name}: {value or NOT_STATED}" for name, value in parts)
    return f"{text}; statement: {who.statement or NOT_STATED}", STATED


def _decision(release: Release) -> tuple[str, str]:
    made = release.decision
    if made is None:
        return NOT_STATED, ""
    text = f"{made.outcome[:1].upper()}{made.outcome[1:]}, decided by: {made.by or NOT_STATED}."
    if made.conditions:
        text += f" Conditions: {'; '.join(made.conditions)}."
    return f"{text} {made.why}".strip(), STATED


def _version(release: Release) -> tuple[str, str]:
    if not release.version and release.date is None and not release.changes:
        return NOT_STATED, ""
    day: date | None = release.date
    changes = f"{count(len(release.changes), 'change')} below" if release.changes else f"changelog {NOT_STATED}"
    return (
        f"Version {release.version or NOT_STATED}, {day.isoformat() if day else f'date {NOT_STATED}'}; {changes}.",
        STATED,
    )
