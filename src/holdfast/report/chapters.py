"""The chapters of a report. Each is a function of the audit, and states whether the chapter is public."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.losses import read_traces
from holdfast.report import plots, training_plot
from holdfast.report.audited import Audited
from holdfast.report.blocks import Chapter, Fact, Facts, Figure, Gallery, Sentences, Text, bullets, legend
from holdfast.report.first_page import scenarios
from holdfast.report.tables import attacks as attack_tables
from holdfast.report.tables import audit as audit_tables
from holdfast.report.tables import models as model_tables
from holdfast.report.tables import rules as rule_tables
from holdfast.report.tables.provenance import provenance
from holdfast.report.tables.verdict import intervals, verdict
from holdfast.report.words.data import shared
from holdfast.report.words.masking import sentences
from holdfast.report.words.protocol import CAVEATS, PROTOCOL
from holdfast.report.words.rules import SOURCES, voiding
from holdfast.report.words.suspicion import remark
from holdfast.report.words.warnings import blindness, comparison
from holdfast.stats.honesty import Masked
from holdfast.stats.masking import checked


def by_model(audit: Audited, name: str) -> Chapter:
    """Hazard and ability of every model, and how models differ."""
    summary = audit.summary
    floor = "; the green line is the never-exposed level" if summary.floor is not None else ""
    chance = "; the dashed line is chance" if summary.hazard.chance is not None else ""
    strip = f"In the strip: the dark bar is the mean after attack, the shaded reach goes to the worst attack{floor}{chance}."
    return Chapter(
        key="verdict",
        title="Verdict by model",
        blocks=(
            verdict(audit),
            Text(text=strip, drawn=True) if summary.hazard.metric != "nats" else None,
            bullets(*(comparison(difference, summary.hazard) for difference in summary.comparisons)),
            intervals(audit),
        ),
        public=True,
    )


def misuse(audit: Audited, name: str) -> Chapter:
    """The hazard that a misuser reaches."""
    return Chapter(key="misuse", title="What a misuser gets", blocks=(scenarios(audit),), public=True)


def overview(audit: Audited, name: str) -> Chapter:
    """Every attack as a dot, hazard by ability."""
    picture = plots.overview(audit.summary, f"{name}-overview")
    figure = (
        None
        if picture is None
        else Figure(
            heading="Each attack, by the ability left and the hazard shown",
            picture=picture,
            table=attack_tables.overview(audit),
            text="A ruined model can look safe. Each filled mark is one attack, the large open marks are the models before any "
            "attack. What an attacker wants is at the top right.",
            legend=legend(audit.summary, f"{name}-overview"),
        )
    )
    return Chapter(key="overview", title="Hazard and ability after attack", blocks=(figure,))


def relearning(audit: Audited, name: str) -> Chapter:
    """Hazard along every attack."""
    figures = tuple(
        Figure(
            heading=attack.name,
            tag=attack_tables.doubt(attack),
            picture=picture,
            table=attack_tables.curve(audit, attack.name),
        )
        for place, attack in enumerate(audit.summary.attacks)
        if (picture := plots.relearning(audit.summary, attack.name, f"{name}-curve{place}")) is not None
    )
    gallery = Gallery(
        text="Hazard at the milestones of each attack. Lines are means over seeds, bands run from the lowest seed to the "
        "highest, and a cross ends a run that became non-finite.",
        figures=figures,
    )
    return Chapter(
        key="curves",
        title="Relearning under attack",
        blocks=(gallery if figures else None, audit_tables.relearning(audit)),
    )


def by_attack(audit: Audited, name: str) -> Chapter:
    """Every attack on every model."""
    return Chapter(
        key="attacks",
        title="Attack by attack",
        blocks=(
            attack_tables.attack_by_model(audit),
            audit_tables.decisions(audit),
            audit_tables.controls(audit),
            attack_tables.steps_to_breach(audit),
        ),
    )


def by_family(audit: Audited, name: str) -> Chapter:
    """Every family on every model; the public report shows this chapter in place of `by_attack`."""
    table = attack_tables.by_family(audit) if audit.public else None
    return Chapter(key="families", title="Family by family", blocks=(table,), public=True)


def breach_costs(audit: Audited, name: str) -> Chapter:
    """The cost of each attack."""
    blocks = (audit_tables.work_factors(audit), audit_tables.breach_costs(audit))
    return Chapter(key="breach", title="What a breach costs", blocks=blocks)


def ability_losses(audit: Audited, name: str) -> Chapter:
    """Hazard by the ability that an attacker gives up."""
    return Chapter(
        key="losses", title="Hazard by the ability given up", blocks=(audit_tables.losses(audit),), public=True
    )


def belief(audit: Audited, name: str) -> Chapter:
    """The checks of the attacks."""
    said = (check for check in audit.reasons if not isinstance(check, Masked))  # those have a chapter of their own
    remarks = Sentences(sentences=tuple(remark(check, audit.summary.hazard, audit.names) for check in said))
    return Chapter(
        key="belief",
        title="Can the attacks be believed?",
        blocks=(remarks, bullets(*blindness(audit.summary)), attack_tables.attack_costs(audit)),
    )


def masking(audit: Audited, name: str) -> Chapter:
    """The checks of the models."""
    models = checked(audit.plan, audit.results)
    return Chapter(
        key="masking",
        title="Checks of the models for masking",
        blocks=(bullets(*sentences(models)), model_tables.masking(audit)),
        public=True,
    )


def costs(audit: Audited, name: str) -> Chapter:
    """The cost of the safeguard for benign users."""
    return Chapter(
        key="costs",
        title="What the safeguard costs",
        blocks=(model_tables.costs(audit), model_tables.refusals(audit)),
        public=True,
    )


def training(audit: Audited, name: str) -> Chapter:
    """The losses of every safeguard as it was trained."""
    figures = tuple(
        Figure(
            heading=f"{model.label}: {trace.preset}",
            picture=training_plot.draw(trace, f"{name}-training{place}-{trace.stage}"),
            table=model_tables.training(model.label, trace),
        )
        for place, model in enumerate(audit.summary.models)
        for trace in read_traces(audit.details(model.label).get("losses"))
    )
    text = (
        "The losses of each safeguard by update, one panel a loss. The safeguard did not move a loss that stays level."
    )
    return Chapter(
        key="training",
        title="How the safeguards were trained",
        blocks=(Gallery(text=text, legend=(), figures=figures) if figures else None,),
    )


def limits(audit: Audited, name: str) -> Chapter:
    """The limits of the figures."""
    return Chapter(key="limits", title="What resistance does not mean", blocks=(bullets(*CAVEATS),), public=True)


def how_to_read(audit: Audited, name: str) -> Chapter:
    """The definitions."""
    facts = Facts(facts=tuple(Fact(term=term, value=meaning) for term, meaning in PROTOCOL))
    return Chapter(key="reading", title="How to read the figures", blocks=(facts,), public=True)


def rules(audit: Audited, name: str) -> Chapter:
    """The questions of rules and frameworks. In public too: the figures are public ones, and the statements are made for it."""
    notes = audit.release.notes if audit.release else ""
    blocks = (
        Text(text=SOURCES),
        rule_tables.questions(audit),
        rule_tables.tiers(audit),
        Text(text="The audit no longer holds under any of these conditions:"),
        bullets(*voiding(audit)),
        rule_tables.changelog(audit),
        Text(text=f"Notes for the internal report: {notes}") if notes else None,
    )
    return Chapter(key="rules", title="What rules and frameworks ask", blocks=blocks, public=True)


def settings(audit: Audited, name: str) -> Chapter:
    """The settings of the attacks, and the notes beside them."""
    notes = audit.plan.details.get("notes") or ()
    texts = (notes,) if isinstance(notes, str) else tuple(map(str, notes))
    return Chapter(key="settings", title="Attacks and notes", blocks=(bullets(*texts), attack_tables.attacks(audit)))


def how_it_was_run(audit: Audited, name: str) -> Chapter:
    """Versions, hashes and seeds."""
    return Chapter(
        key="method", title="How it was run", blocks=(bullets(*shared(audit.data)), provenance(audit)), public=True
    )


def runs(audit: Audited, name: str) -> Chapter:
    """Every run."""
    return Chapter(key="runs", title="All runs", blocks=(attack_tables.cells(audit),))


CHAPTERS: tuple[Callable[[Audited, str], Chapter], ...] = (
    by_model,
    misuse,
    overview,
    relearning,
    by_attack,
    by_family,
    breach_costs,
    ability_losses,
    belief,
    masking,
    costs,
    training,
    limits,
    rules,
    how_to_read,
    settings,
    how_it_was_run,
    runs,
)
"""In the order of reading. The name makes ids unique on the page."""


def chapters(audit: Audited, name: str) -> tuple[Chapter, ...]:
    """The chapters that are not empty; in public, only those marked public."""
    written = (chapter(audit, name) for chapter in CHAPTERS)
    return tuple(chapter for chapter in written if chapter.shown and (chapter.public or not audit.public))
