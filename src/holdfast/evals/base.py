"""The interface of an evaluation."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdfast.core.types import Measure, Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.disguise import Disguise
    from holdfast.core.domain import Domain

    Probe = Callable[[PreTrainedModel], list[Score]]
    """Measures a live model, which is bit-identical afterwards."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(abc.ABC):
    """A frozen description of a measurement; `prepare` reads its data once and returns a probe to call often."""

    version: ClassVar[int] = 1
    """raised whenever the same fields give other scores; the version enters identities, so that no old result passes for a new
    one"""

    only_by_name: ClassVar[bool] = False
    """True: runs only where the user names the evaluation (`--evaluation`), not on every domain that has the needed data"""

    @abc.abstractmethod
    def measures(self, domain: Domain) -> Measure:
        """The measured property, which says who wants the value high."""

    @abc.abstractmethod
    def available(self, domain: Domain) -> bool:
        """Whether the domain holds what the evaluation needs."""

    @abc.abstractmethod
    def content(self, domain: Domain) -> str:
        """Content hash of what the evaluation reads of the domain; the hash enters a cell's identity."""

    @abc.abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        """Read and tokenize what the evaluation needs.

        The probe raises NonFinite where logits are not finite: such a model has no score.
        """

    def positions(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> int:
        """How many tokens the model reads of the longest question, with what it writes after it; 0: no questions are asked."""
        return 0

    def wearing(self, disguise: Disguise) -> Evaluation:
        """The evaluation under the disguise that the attacker trained in; an evaluation without words to disguise stays plain."""
        return self

    @abc.abstractmethod
    def at_milestone(self, domain: Domain) -> Evaluation | None:
        """The evaluation for milestones between the first and the last step: itself, a sample, or None."""
