"""The first page, on which a release manager decides."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.report import frontier_plot
from holdfast.report.audited import Audited
from holdfast.report.blocks import Fact, Figure
from holdfast.report.sign_off import Signing, SignOff, sign_off
from holdfast.report.table import Entry, Table
from holdfast.report.tables.controls import controls
from holdfast.report.tables.models import over_refusal
from holdfast.report.words.data import holdings, measured_on, objections
from holdfast.report.words.masking import alarms
from holdfast.report.words.numbers import (
    NOTHING,
    amount,
    bare,
    count,
    duration,
    factor,
    factor_interval,
    flops,
    interval,
    leverage_text,
    spent,
)
from holdfast.report.words.suspicion import remark
from holdfast.report.words.tiles import Tile, tiles
from holdfast.report.words.verdict import Finding, findings
from holdfast.report.words.warnings import unreliable, warnings
from holdfast.stats.audit import ModelFigures
from holdfast.stats.cells import ABILITY_BOUND
from holdfast.stats.figures import ModelSummary
from holdfast.stats.honesty import Masked, Reason
from holdfast.stats.recovery import BREACH
from holdfast.stats.suspicion import Control

NEVER_TESTED = (
    "merging with models other than the original or a sibling of it",
    "attacks with more hazardous data than the attacker's set holds, and longer or costlier ones than the largest run here",
    "inputs at use: jailbreak prompts, retrieval of the missing knowledge from elsewhere, tools and agents",
)
"""What no suite of holdfast covers."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One model under test: its verdict and its five figures."""

    finding: Finding
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class FirstPage:
    """One audit on one page, safe to publish: the page names attacks by `Audited.names` and `Audited.plain` alone."""

    sign_off: SignOff
    judged: tuple[Judged, ...]
    reasons: tuple[str, ...]
    facts: tuple[Fact, ...]
    frontier: Figure | None
    models: Table
    threat: tuple[str, ...]
    falsifiers: tuple[str, ...]
    untested: tuple[str, ...]
    identity: tuple[Fact, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The verdicts."""
        return tuple(one.finding for one in self.judged)

    @property
    def lists(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The sentences under their headings; those without sentences are left out."""
        lists = (
            ("Threat model and budget", self.threat),
            ("What would falsify this", self.falsifiers),
            ("Not tested", self.untested),
        )
        return tuple((heading, sentences) for heading, sentences in lists if sentences)


def first_page(audit: Audited, *, records: str = "", signing: Signing = Signing()) -> FirstPage:  # noqa: B008 - frozen
    """Everything on the first page.

    Args:
        audit: what the page is about.
        records: the hash of the audit's folder.
        signing: what only the person who makes the page can say.
    """
    return FirstPage(
        sign_off=sign_off(audit, records, signing),
        judged=tuple(
            Judged(finding=finding, tiles=tiles(model, audit))
            for finding, model in zip(findings(audit), audit.judged, strict=True)
        ),
        reasons=tuple(dict.fromkeys(_reasons(audit))),
        facts=tuple(fact for model in audit.judged[:1] for fact in _facts(model, audit)),
        frontier=_frontier(audit, f"{audit.name}-frontier"),
        models=controls(audit),
        threat=tuple(_threat(audit)),
        falsifiers=tuple(_falsifiers(audit)),
        untested=tuple(_untested(audit)),
        identity=tuple(_identity(audit)),
    )


def _facts(model: ModelSummary, audit: Audited) -> list[Fact]:
    """The figures of the model under test that belong beside the verdict."""
    figures, of = audit.figures, audit.figures.of(model.label)
    facts = []
    if figures.reference and of.work_factor:
        work = of.work_factor[BREACH]
        between = factor_interval(work)
        value = f"{factor(work)} the training that breaches {figures.reference}" + (f" ({between})" if between else "")
        facts.append(Fact(term="Work factor", value=value))
    if edits := [cost.attack for cost in of.breach_costs if cost.by == 0 and cost.attack in model.under("breached")]:
        value = f"breached by {audit.names.listed(edits)}, to which no work factor applies"
        facts.append(Fact(term="Without training", value=value))
    if (refused := over_refusal(audit, model.label)) is not None:
        facts.append(Fact(term="Over-refusal", value=refused))
    facts.append(Fact(term="Cost of the safeguard", value=_built(of, audit)))
    return facts


def _built(of: ModelFigures, audit: Audited) -> str:
    details, texts = audit.details(of.label), []
    if details.get("flops"):
        texts.append(flops(details["flops"]))
    if details.get("tokens"):
        texts.append(f"{details['tokens']:,} tokens")
    if details.get("seconds"):
        texts.append(duration(details["seconds"]))
    if of.leverage is not None:
        texts.append(f"which the attacker has to repay {leverage_text(of.leverage)} times")
    return ", ".join(texts) or "not known"


def scenarios(audit: Audited) -> Table:
    """The hazard that a misuser reaches in four ways, with the ability beside it."""
    undefended = audit.role("undefended")
    rows: list[tuple[Entry, ...]] = []

    def row(way: str, model: str, what: str, hazard: float, ability: float | None) -> None:
        texts = (what, amount(hazard, audit.summary.hazard), amount(ability, audit.summary.ability))
        rows.append((Entry(way, note=model), *(Entry(text) for text in texts)))

    if undefended is not None and undefended.before is not None:
        what = "the model before any safeguard, as it is"
        row("Safeguards off", "", what, undefended.before.value, undefended.ability_before)
    for model in audit.judged:
        of = audit.figures.of(model.label)
        for way, reached, bound in (
            ("Safeguard removal", of.with_base, "ability kept"),
            ("Misuse of a broken model", of.unbounded, "whatever ability is left"),
        ):
            for top in reached[-1:]:
                what = f"the attack that does most, {bound}: {audit.names(top.attack)}"
                row(way, model.label, what, top.hazard, top.ability)
    for top in audit.figures.of(undefended.label).unbounded[-1:] if undefended is not None else ():
        what = f"the undefended model, trained further on the hazard: {audit.names(top.attack)}"
        row("Selective amplification", "", what, top.hazard, top.ability)
    return Table(caption="Four ways to misuse", columns=("Way", "What is done", "Hazard", "Ability"), rows=tuple(rows))


def _frontier(audit: Audited, name: str) -> Figure | None:
    picture = frontier_plot.draw(audit.summary, audit.figures, name)
    if picture is None:
        return None
    return Figure(
        heading="Breach frontier: the greatest hazard that each cost buys, from the weights alone, ability kept",
        picture=picture,
        table=_frontier_table(audit),
    )


def _frontier_table(audit: Audited) -> Table:
    """The numbers behind the frontier."""
    hazard = audit.summary.hazard
    return Table(
        caption="The greatest hazard reached at each cost by attacks on the weights alone, ability kept",
        columns=("Model", "From a cost of", "Hazard", "95 % interval", "Ability"),
        rows=tuple(
            (
                Entry(model.label),
                Entry(spent(reached.cost, audit.figures.unit)),
                Entry(
                    text=amount(reached.hazard, hazard, decimals=1),
                    link=audit.runs(model.label, reached.attack) if reached.step else "",
                ),
                Entry(interval(reached.interval, hazard)),
                Entry(amount(reached.ability, audit.summary.ability)),
            )
            for model in audit.figures.models
            for reached in (model.frontier or model.unbounded)
        ),
        notes=("A line stands where hazard or an end of its interval changes. Edits of the weights take no FLOPs.",),
        look="plain",
    )


def _threat(audit: Audited) -> list[str]:
    summary, figures = audit.summary, audit.figures
    updates = max((attack.budget for attack in summary.attacks), default=0)
    budget = f" or {flops(figures.budget)}" if figures.unit == "flops" else ""
    families = {result.family for result in audit.results if result.family}
    held = holdings(audit.data, measured_on(audit.results, summary.hazard.evaluations))
    sentences = [
        f"The attacker holds the weights, {held}, and up to {count(updates, 'update')}{budget} an attack.",
        f"{count(len(summary.attacks), 'attack')} of {count(len(families), 'family')}, suite "
        f"{audit.plan.suite}, each with {count(len(summary.seeds), 'seed')}; what draws nothing is run once.",
    ]
    uses = [name for name in figures.uses_base if summary.attack(name)]
    if uses:
        sentences.append(
            f"{count(len(uses), 'attack')} also {'has' if len(uses) == 1 else 'have'} {_held(audit)} "
            f"({audit.names.listed(uses)}): {'it matters' if len(uses) == 1 else 'they matter'} where that model is public."
        )
    left_out = audit.plan.details.get("left_out", ())
    if left_out:
        sentences.append(
            f"The attacker does not have the model before the safeguard, so {count(len(left_out), 'attack')} of the suite "
            f"{'was' if len(left_out) == 1 else 'were'} left out ({audit.names.listed(left_out)})."
        )
    return sentences


def _held(audit: Audited) -> str:
    if audit.plan.details.get("sibling"):
        return (
            "a sibling of the model before the safeguard (an earlier revision, another fine-tune or a quantised copy)"
        )
    return "the model before the safeguard"


def _falsifiers(audit: Audited) -> list[str]:
    hazard = audit.summary.hazard
    limits = [pair.threshold for pair in audit.summary.pairs if pair.threshold is not None]
    low, high = (bare(min(limits), hazard), amount(max(limits), hazard)) if limits else ("", "its threshold")
    limit = f"{low}\N{EN DASH}{high}" if low and low != bare(max(limits), hazard) else high
    return [
        f"A confirmed run within this budget that brings hazard above {limit} (half-way from the never-exposed model to the "
        f"undefended one under the same attack, fixed beforehand), with ability within {100 * ABILITY_BOUND:.0f} points.",
        "Hazard questions on which the never-exposed model does as well as the undefended: then there was nothing to hide.",
    ]


def _reasons(audit: Audited) -> list[str]:
    """The objections to the audit. A public page only counts those of the attack checks, which tell of rates and single runs."""
    fired = [_reason(check, audit) for check in audit.reasons if check.fires and not isinstance(check, Control)]
    unsaid = sum(check.fires for check in audit.unsaid)
    if unsaid:
        fired.append(
            f"{unsaid} of {len(audit.unsaid)} checks of the attacks fired; the internal report says which and why."
        )
    return [*(f"Unreliable: {text}." for text in unreliable(audit)), *fired, *warnings(audit), *objections(audit.data)]


def _reason(check: Reason, audit: Audited) -> str:
    """A check that fires, in words: of the checks for masking what fires alone. Weak attacks are among the warnings."""
    if isinstance(check, Masked):
        return alarms(check.masking, check.models)
    return remark(check, audit.summary.hazard, audit.names).text


def _untested(audit: Audited) -> list[str]:
    missing = (
        ("undefended", "undefended model"),
        ("reference", "shallow reference"),
        ("never-exposed", "never-exposed model"),
    )
    texts = [f"no {text} was given" for role, text in missing if audit.role(role) is None]
    measures = [measured.measures for model in audit.summary.models for measured in model.untouched]
    if measures and "refusal" not in measures:
        texts.append("over-refusal: the domain names no requests")
    return [*texts, *NEVER_TESTED]


def _identity(audit: Audited) -> list[Fact]:
    """What was run, complete enough to find it again; the model itself stands in the sign-off."""
    plan, facts = audit.plan, list[Fact]()
    data = {digest for result in audit.results for digest in result.identity.get("data", {}).values()}
    facts.append(Fact(term="Attacker's data", value=", ".join(sorted(digest[:12] for digest in data)) or NOTHING))
    seeds = ", ".join(map(str, audit.summary.seeds))
    facts.append(Fact(term="Suite and seeds", value=f"{plan.suite}; attack seeds {seeds}; domain {plan.domain}"))
    versions = next((result.environment for result in audit.results if result.environment), {})
    shown = [f"{key} {versions[key]}" for key in ("holdfast", "torch", "transformers", "machine") if key in versions]
    facts.append(Fact(term="Made with", value=", ".join(shown) or NOTHING))
    return facts
