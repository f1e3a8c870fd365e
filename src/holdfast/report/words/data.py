"""The sentences on the data of an audit: what the attacker holds of the questions, what overlaps, what is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.core.findings import Cut, Findings, Overlap, RunTogether, questions_of
from holdfast.core.records import CellResult
from holdfast.report.words.numbers import listed

_HAZARDOUS = ("attack", "attack_ood", "attack_all")
"""the attacker's hazardous roles"""

_ATTACKER = (*_HAZARDOUS, "benign")

_CLAIMED = ("questions hazard", "questions requests")
_CHOSEN_ON = ("questions hazard_selection", "questions requests_selection")

_APART = (
    (("forget", "forget_heldout"), ("retain",), "the safeguard is told to forget and to keep them"),
    (("forget",), ("forget_heldout",), "what is held out from the safeguard's training is not held out"),
    (("forget", "forget_heldout"), ("attack", "attack_ood"), "the attacker holds what the safeguard was trained on"),
    (
        ("hazard_heldout",),
        ("forget", "forget_heldout", *_HAZARDOUS),
        "the held-out loss is measured on what is trained on",
    ),
    (("benign_heldout", "benign_new"), ("retain", "benign"), "what is measured there is trained on"),
    (("questions benign_outside_retain",), ("retain",), "this ability is not outside the retain rows"),
    (_CLAIMED, ("forget", "forget_heldout"), "the safeguard was trained on what is asked"),
    (_CLAIMED, _ATTACKER, "hazard after an attack may be what the attack taught"),
    (_CLAIMED, _CHOSEN_ON, "what is claimed was chosen on the same questions"),
)
"""Sets that are to have nothing in common, and what follows where they do. `attack_all` may hold all that the attacker could
collect, and the attacker's benign rows may be the defender's."""


def measured_on(results: Sequence[CellResult], evaluations: Iterable[str]) -> list[str]:
    """The sets, as overlaps name them, on which evaluations were measured."""
    names: dict[str, None] = {}
    for result in results:
        described = result.identity.get("evaluations")
        for evaluation in evaluations:
            entry = described.get(evaluation) if isinstance(described, dict) else None
            fields = entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], dict) else {}
            if "role" in fields:
                names[str(fields["role"])] = None
            else:
                names[questions_of(str(fields.get("questions", evaluation)))] = None
    return list(names)


def holdings(data: Findings | None, measured: Sequence[str]) -> str:
    """The attacker's hazardous data, with what was found of them in the sets on which hazard is measured."""
    compared = set(data.compared) if data else set[str]()
    what = (
        "the questions ask about"
        if any(name.startswith("questions ") for name in measured)
        else "the loss is measured on"
    )
    known = measured and compared.issuperset(measured) and compared & set(_HAZARDOUS)
    if data is None or not known:
        return f"hazardous data of his own (not compared with what {what})"
    given = [overlap for overlap in data.overlaps if _between(overlap, measured, _ATTACKER)]
    if not given:
        return f"hazardous data of his own (none that {what})"
    worst = max(given, key=lambda overlap: (overlap.same + overlap.near) / overlap.of)
    return f"hazardous data of his own ({_share(worst)})"


def objections(data: Findings | None) -> list[str]:
    """What weakens the figures, a sentence each."""
    if data is None:
        return []
    overlaps = [
        f"{_share(overlap)}: {why}."
        for overlap in data.overlaps
        for left, right, why in _APART
        if _between(overlap, left, right)
    ]
    return [*overlaps, *cut_sentences(data.cuts), *map(_run_together, data.run_together)]


def cut_sentences(cuts: Iterable[Cut]) -> list[str]:
    """A sentence for each role of which rows are cut."""
    return [
        f"{cut.cut} of {cut.rows} rows of {cut.role} are longer than max_length and lose their end"
        + (f"; {cut.empty} of them have nothing left to learn." if cut.empty else ".")
        for cut in cuts
        if cut.cut
    ]


def shared(data: Findings | None) -> list[str]:
    """What was compared and found in common, without a judgement."""
    if data is None or not data.compared:
        return ["Rows and questions were not compared with each other."]
    found = [f"{_share(overlap)}." for overlap in data.overlaps] or ["No two of them have anything in common."]
    return [f"Compared with each other: {listed(data.compared)}.", *found]


def _share(overlap: Overlap) -> str:
    """How much of one set the other has."""
    asked, of_questions = overlap.one.startswith("questions "), overlap.other.startswith("questions ")
    kind = "questions" if asked else "rows"
    stand = "are answered by rows of" if asked and not of_questions else "stand too in"
    near = f", {overlap.near} of them nearly," if overlap.near else ""
    return (
        f"{overlap.same + overlap.near} of {overlap.of} {kind} of {overlap.one.removeprefix('questions ')}{near} "
        f"{stand} {overlap.other}"
    )


def _between(overlap: Overlap, left: Sequence[str], right: Sequence[str]) -> bool:
    return (overlap.one in left and overlap.other in right) or (overlap.one in right and overlap.other in left)


def _run_together(found: RunTogether) -> str:
    return (
        f"In {found.count} of {found.of} questions of {found.questions}, prompt and option run together without a blank, which "
        f'costs a model what it knows: put join = " " into [questions.{found.questions}] of domain.toml.'
    )
