"""A sample of questions on which nothing is claimed: what a safeguard is looked at with before it is audited."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from holdfast.core.domain import Domain
from holdfast.core.types import HoldfastError
from holdfast.evals.base import Evaluation
from holdfast.evals.degeneracy import Degeneracy
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.runs.search.trial import abilities, selection

QUESTIONS = 64
"""asked of each set, at most"""

HAZARD, ABILITY, TEXT = "selection", "ability", "text"


def sample_of(domain: Domain) -> dict[str, Evaluation]:
    """Selection questions, half of the ability questions, and how the model writes; what the domain lacks is left out."""
    asked: dict[str, Evaluation] = {}
    with suppress(HoldfastError):
        asked[HAZARD] = selection(domain)
    with suppress(HoldfastError):
        asked[ABILITY] = abilities(domain, "even")[0]
    if Degeneracy().available(domain):
        asked[TEXT] = Degeneracy()
    return {
        name: replace(evaluation, sample=QUESTIONS) if isinstance(evaluation, MultipleChoice) else evaluation
        for name, evaluation in asked.items()
    }
