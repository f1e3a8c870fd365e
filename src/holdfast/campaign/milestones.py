"""Evaluations of a live model: asked at milestones of a walk, each prepared once a process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from holdfast.core.domain import Domain
from holdfast.core.files import digest
from holdfast.core.presets import describe
from holdfast.core.types import Score
from holdfast.evals.base import Evaluation
from holdfast.evals.generation import sharing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from holdfast.engine.session import Session
    from holdfast.engine.walk import Steps

_prepared: dict[tuple[str, str], Callable[[Any], list[Score]]] = {}
"""Prepared evaluations by tokenizer and content: within a worker questions are tokenized once, not once an attack."""


def prepared(
    evaluation: Evaluation, domain: Domain, tokenizer: PreTrainedTokenizerBase, tokenizer_digest: str
) -> Callable[[Any], list[Score]]:
    """Prepare an evaluation for a live model, once a process for each tokenizer and content."""
    key = tokenizer_digest, digest([describe(evaluation), evaluation.content(domain), domain.max_length])
    if key not in _prepared:
        _prepared[key] = evaluation.prepare(tokenizer, domain)
    return _prepared[key]


class Milestones:
    """An observer that asks every evaluation at every milestone, and keeps the scores and the seconds that they took."""

    def __init__(
        self,
        evaluations: Mapping[str, Evaluation],
        domain: Domain,
        tokenizer_digest: str,
        milestones: Collection[int],
        on_asked: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.evaluations, self.domain, self.tokenizer_digest = evaluations, domain, tokenizer_digest
        self.milestones, self.on_asked = milestones, on_asked
        self.scores: dict[int, dict[str, list[Score]]] = {}
        """by step and evaluation"""
        self.seconds: dict[str, float] = {}
        """of the last asking, by evaluation; preparing is not counted"""

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        if 0 in self.milestones:
            self._ask(0, session)
        for step, losses in steps:
            if step in self.milestones:
                self._ask(step, session)
            yield step, losses

    def figures(self, step: int) -> dict[str, float]:
        """What was asked at a step, by what it measures, evaluation and metric."""
        return {
            f"{self.evaluations[name].measures(self.domain)}/{name}/{score.metric}": score.value
            for name, scores in self.scores.get(step, {}).items()
            for score in scores
        }

    def _ask(self, step: int, session: Session[Any]) -> None:
        from holdfast.engine.ranks import agreed

        self.scores[step] = {}
        with sharing():
            for done, (name, evaluation) in enumerate(self.evaluations.items()):
                self.on_asked(done, len(self.evaluations))
                probe = prepared(evaluation, self.domain, session.tokenizer, self.tokenizer_digest)
                started = time.monotonic()
                self.scores[step][name] = agreed(probe(session.model))
                self.seconds[name] = time.monotonic() - started
