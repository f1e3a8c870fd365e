"""The table of controls: one line a model, the model under test between the models that frame its verdict."""

from __future__ import annotations

from holdfast.report.audited import Audited
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import NOTHING, amount, factor, interval, times, written
from holdfast.report.words.threat import threat
from holdfast.report.words.verdict import verdict_word
from holdfast.stats.audit import ModelFigures
from holdfast.stats.cells import ABILITY_BOUND
from holdfast.stats.figures import ANCHOR_ROLES, ModelSummary
from holdfast.stats.frontier import Reached
from holdfast.stats.recovery import BREACH


def controls(audit: Audited) -> Table:
    """One line a model: the controls that frame the verdict."""
    base = bool(audit.figures.uses_base)
    note = (
        "Worst hazard: the greatest mean over seeds at any milestone of any attack, with ability within "
        f"{100 * ABILITY_BOUND:.0f} points of before. Work factor: cost of the cheapest breach by training on the weights alone "
        f"over {audit.figures.reference or 'a reference'}'s, per seed, median. Relearning: 0 as the never-exposed model, 1 as "
        "the undefended."
    )
    return Table(
        caption="The model under test between its controls",
        columns=(
            "Model",
            "Hazard before",
            "Worst hazard",
            *(("From the weights alone",) if base else ()),
            "Ability there",
            "Work factor",
            "Relearning",
            "Ability before",
            "Benign learning",
        ),
        rows=tuple(_row(model, audit, base) for model in audit.summary.models),
        notes=(note, threat(audit)),
        look="models",
    )


def _row(model: ModelSummary, audit: Audited, base: bool) -> tuple[Entry, ...]:
    hazard, ability, of = audit.summary.hazard, audit.summary.ability, audit.figures.of(model.label)
    top = of.worst
    work = of.work_factor.get(BREACH) if model.role not in ANCHOR_ROLES or model.role == "never-exposed" else None
    reference = model.label == audit.figures.reference
    costs = audit.chapter("costs")
    return (
        Entry(model.label, note=_role(model), tag="" if model.role in ANCHOR_ROLES else verdict_word(model)),
        Entry(amount(model.before.value if model.before else None, hazard)),
        _reached(top, model.label, audit),
        *([_reached(of.frontier[-1] if of.frontier else None, model.label, audit)] if base else []),
        Entry(amount(top.ability if top else None, ability)),
        Entry(
            text=NOTHING if work is None or reference else factor(work),
            note="the reference" if reference else "",
            link="" if audit.public or work is None or reference else audit.chapter("breach"),
        ),
        Entry(written(of.mean_relearning.auc if of.mean_relearning else None, ".2f")),
        Entry(amount(model.ability_before, ability), link=costs),
        Entry(_ratio(of), link=costs if of.learning else ""),
    )


def _reached(top: Reached | None, model: str, audit: Audited) -> Entry:
    """A hazard with its interval and the family that reached it; the name of the attack stands with its runs."""
    hazard = audit.summary.hazard
    if top is None:
        return Entry(NOTHING)
    by = audit.plain(top.attack) if top.step else "before any attack"
    return Entry(
        text=amount(top.hazard, hazard),
        note=f"{interval(top.interval, hazard)}, {by}",
        link=audit.runs(model, top.attack) if top.step else "",
    )


def _role(model: ModelSummary) -> str:
    role = {"reference": "shallow reference", "defended": "under test", "destroyed": "weights out of order"}
    return role.get(model.role, "" if model.role == model.label else model.role)


def _ratio(of: ModelFigures) -> str:
    return NOTHING if of.learning is None else times(of.learning.low, of.learning.high)
