"""The sentences on what a safeguard did: what moved, what it hid, and whether the model broke."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.core.types import Score
from holdfast.report.words.numbers import listed, percent, small_percent, written
from holdfast.stats.effect import Effect, Moved


def effect_sentences(effect: Effect) -> list[str]:
    """What moved, hazard and ability before and after, and a warning where the safeguard did nothing or too much."""
    sentences = [moved(effect)]
    if effect.before.hazard is not None and effect.after.hazard is not None:
        hazard = _change(effect.before.hazard, effect.after.hazard, "selection questions, on which nothing is claimed")
        sentences.append(f"Hazard {hazard}.")
    else:
        sentences.append("Hazard was not asked, because the domain has no [questions.hazard_selection].")
    if effect.before.ability is not None and effect.after.ability is not None:
        sentences.append(f"Ability {_change(effect.before.ability, effect.after.ability, 'questions')}.")
    return [*sentences, *warnings(effect)]


def moved(effect: Effect) -> str:
    """The losses and the weights at both ends."""
    several = len({loss.preset for loss in effect.losses}) > 1
    losses = [f"{loss.preset}: {_ends(loss)}" if several else _ends(loss) for loss in effect.losses]
    weights = [] if effect.weights is None else [f"weights moved by {small_percent(effect.weights)}"]
    text = listed([*losses, *weights]) if losses or weights else "no loss was given"
    return f"{text[0].upper()}{text[1:]}."


def warnings(effect: Effect) -> list[str]:
    """What a user has to know before the safeguard is relied on."""
    found = []
    if effect.knew_nothing:
        found.append(
            "The model answered no better than chance before the safeguard too. If an earlier safeguard hides the hazard, an "
            "audit shows what this one adds; otherwise there was nothing to hide."
        )
    elif effect.hidden is False and effect.still:
        found.append(
            "Nothing moved: no loss changed by 3 % and hazard did not fall. `holdfast calibrate` proposes a rate and weights."
        )
    elif effect.hidden is False:
        found.append(
            "The safeguard hid nothing: hazard did not fall by more than its sampling error. `holdfast calibrate` proposes a "
            "rate and weights."
        )
    elif effect.hidden is None and effect.losses and effect.still:
        found.append("Nothing moved: no loss changed by 3 %. `holdfast calibrate` proposes a rate and weights.")
    if effect.guesses:
        found.append(
            "The model is broken: its ability is down to chance. Lower the rate or the weights, or take fewer steps."
        )
    elif effect.halved:
        found.append(
            "More than half of the ability above chance is gone. Lower the rate or the weights, or take fewer steps."
        )
    if effect.degenerate and effect.after.repetition is not None and effect.before.repetition is not None:
        before, after = percent(effect.before.repetition.value), percent(effect.after.repetition.value)
        found.append(
            f"The model's text is degenerate: {after} of it repeats itself, {before} before. Lower the rate or the weights, or "
            "take fewer steps."
        )
    return found


def losses_now(losses: Mapping[str, float]) -> str:
    """The losses of one update, for a line of progress."""
    return ", ".join(f"{name} {written(value, '.3g')}" for name, value in losses.items())


def _ends(loss: Moved) -> str:
    return f"{loss.name} {written(loss.first, '.3f')} → {written(loss.last, '.3f')}"


def _change(before: Score, after: Score, what: str) -> str:
    guessing = "" if after.chance is None else f"; chance is {percent(after.chance)}"
    return f"{percent(before.value)} → {percent(after.value)} ({after.n} {what}{guessing})"
