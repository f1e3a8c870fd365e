"""The ability questions of ready domains: MMLU by subject, near the hazard, inside the retain texts and outside of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.core.domain import Question
from holdfast.runs.domains.preparing import Sizes, by_subject
from holdfast.runs.domains.sources import Given, Source

MMLU = Source(hub="cais/mmlu", config="all", split="test", licence="MIT")

GENERAL: Mapping[str, Sequence[str]] = {
    "economics-corpus": ("high_school_macroeconomics", "high_school_microeconomics", "econometrics"),
    "law-corpus": ("professional_law", "international_law", "jurisprudence"),
    "physics-corpus": ("high_school_physics", "college_physics", "conceptual_physics"),
}
"""Configurations of cais/wmdp-mmlu-auxiliary-corpora -> the MMLU subjects that they cover. These texts are the general part of
the retain rows, so these subjects lie inside them and all others outside."""

TEXTS = tuple(Source(hub="cais/wmdp-mmlu-auxiliary-corpora", config=config) for config in GENERAL)
INSTRUCTIONS = Source(
    hub="lapisrocks/magpie-bio-filtered",
    ask="any set with a column 'conversations' or 'messages' serves",
)
"""The instructions of TAR's own retain data (arXiv 2408.00761): Magpie without biology."""


def ability_sets(
    given: Given, near: Sequence[str], sizes: Sizes, general: bool
) -> dict[str, tuple[str, list[Question]]]:
    """The three ability sets of a domain; a set without questions is left out.

    Args:
        given: with MMLU as `abilities`.
        near: subjects beside the hazard.
        sizes: how many questions.
        general: whether the retain rows hold the general texts.
    """
    rows = given.rows("abilities")
    inside = [subject for subjects in GENERAL.values() for subject in subjects] if general else []
    sets = {
        "related": by_subject(rows, near, (), sizes),
        "benign_in_retain": by_subject(rows, inside, near, sizes),
        "benign_outside_retain": by_subject(rows, None, (*near, *inside), sizes),
    }
    return {name: ("ability", questions) for name, questions in sets.items() if questions}
