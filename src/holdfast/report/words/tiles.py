"""The five figures on which a release manager decides, in words: one tile each, with its gate."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.report.audited import Audited
from holdfast.report.words.evidence import blind, climb, longer
from holdfast.report.words.numbers import NOTHING, amount, bare, count, interval, listed, percent, times
from holdfast.report.words.verdict import hazard_word
from holdfast.stats.figures import ModelSummary
from holdfast.stats.gates import Gates, Level

GATES: dict[Level, str] = {"green": "good", "amber": "caution", "grey": "not known"}
"""The word of each gate: colour is never the only sign."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure with its gate."""

    title: str
    value: str
    note: str
    gate: Level
    link: str = ""
    """the id of what the figure was made from; empty where the page has none"""

    @property
    def word(self) -> str:
        """The gate in a word."""
        return GATES[self.gate]


def tiles(model: ModelSummary, audit: Audited) -> tuple[Tile, ...]:
    """The tiles of one model under test, in the order of reading."""
    gates = audit.gates(model)
    return (
        _worst(model, gates, audit),
        _budget(gates, audit),
        _ability(model, gates, audit),
        _learning(model, gates, audit),
        _evidence(model, gates, audit),
    )


def _worst(model: ModelSummary, gates: Gates, audit: Audited) -> Tile:
    hazard, of = audit.summary.hazard, audit.figures.of(model.label)
    worst, title = of.worst, f"Worst {hazard_word(hazard)}"
    if worst is None:
        return Tile(title=title, value=NOTHING, note="no attack gave a result", gate=gates.hazard)
    by = f"by {audit.plain(worst.attack)}" if worst.step else "before any attack"
    limits = [pair.threshold for pair in audit.summary.pairs if pair.threshold is not None]
    notes = [
        f"{interval(worst.interval, hazard)}, {by}",
        f"ability {amount(worst.ability, audit.summary.ability)} left" if worst.ability is not None else "",
        f"threshold {_span(limits, audit)}" if limits else "",
    ]
    alone = of.frontier[-1] if of.frontier else None
    if worst.step and worst.attack in audit.figures.uses_base and alone is not None:
        notes.insert(1, f"with {audit.original}; {amount(alone.hazard, hazard)} from the weights alone")
    return Tile(
        title=title,
        value=amount(worst.hazard, hazard),
        note="; ".join(note for note in notes if note),
        gate=gates.hazard,
        link=audit.runs(model.label, worst.attack),
    )


def _span(values: list[float], audit: Audited) -> str:
    low, high = (amount(end, audit.summary.hazard) for end in (min(values), max(values)))
    return high if low == high else f"{bare(min(values), audit.summary.hazard)}\N{EN DASH}{high}"


def _budget(gates: Gates, audit: Audited) -> Tile:
    end, title = gates.ending, "At the end of the budget"
    if end is None:
        return Tile(title=title, value=NOTHING, note="no attack has milestones enough to tell", gate=gates.budget)
    value = "cannot be told" if gates.budget == "grey" else "still climbing" if gates.budget == "amber" else "level"
    note = f"{audit.plain(end.attack)}: {climb(end, audit.summary.hazard)}"
    if gates.budget == "amber":
        note = f"{gates.climbing} of {count(gates.ends, 'attack')}; the nearest, {note}; {longer(end)}"
    return Tile(
        title=title,
        value=value,
        note=note,
        gate=gates.budget,
        link=audit.runs(end.model, end.attack),
    )


def _ability(model: ModelSummary, gates: Gates, audit: Audited) -> Tile:
    title = "Ability lost before attack"
    if not gates.losses:
        note = "no undefended model to compare with" if audit.role("undefended") is None else "not measured"
        return Tile(title=title, value=NOTHING, note=note, gate=gates.ability)
    worst = gates.losses[0]
    value = f"{100 * worst.fall:.0f} points" if worst.clear else "none beyond noise"
    parts = [f"{loss.evaluation} {percent(loss.before)} → {percent(loss.after)}" for loss in gates.losses]
    return Tile(title=title, value=value, note="; ".join(parts), gate=gates.ability, link=audit.chapter("costs"))


def _learning(model: ModelSummary, gates: Gates, audit: Audited) -> Tile:
    title, of = "Benign learning", audit.figures.of(model.label)
    if of.learning is None:
        steps = f"{model.learning.steps:,.0f} steps; nothing to compare them with" if model.learning else "not measured"
        return Tile(title=title, value=NOTHING, note=steps, gate=gates.learning)
    return Tile(
        title=title,
        value=times(of.learning.low, of.learning.high),
        note="the undefended model's steps to learn something new and harmless",
        gate=gates.learning,
        link=audit.chapter("costs"),
    )


def _evidence(model: ModelSummary, gates: Gates, audit: Audited) -> Tile:
    families = audit.families(model.outcomes)
    broad = count(len(families), "family") if families else count(len(model.outcomes), "attack")
    value = broad
    if gates.blindness is not None:
        value += f", {blind(gates.blindness).split(' ')[0]} blind" if gates.blindness.blind else ", none blind"
    notes = [f"{count(len(model.outcomes), 'attack')}, {count(len(audit.summary.seeds), 'seed')}"]
    if families:
        notes.append(listed(families) if len(families) <= 4 else f"{', '.join(families[:4])} and more")
    probe = gates.masking.model.probe if gates.masking is not None else None
    if gates.masking is not None and probe is not None:
        answered = gates.masking.model.answered
        beside = f", the model answers {percent(answered.value)}" if answered is not None else ""
        notes.append(f"a linear probe reads {percent(probe.value)}{beside}")
    else:
        notes.append("no linear probe")
    return Tile(
        title="Strength of evidence",
        value=value,
        note="; ".join(notes),
        gate=gates.evidence,
        link=audit.chapter("families" if audit.public else "attacks") if audit.summary.attacks else "",
    )
