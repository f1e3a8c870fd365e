"""What an evaluation is."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.types import Measure, Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.disguise import Disguise
    from holdfast.core.domain import Domain

    Probe = Callable[[PreTrainedModel], list[Score]]
    """Measures a live model, which is bit-identical afterwards."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(abc.ABC):
    """A frozen description of a measurement; `prepare` reads what it needs once, and the probe is then called often."""

    @abc.abstractmethod
    def measures(self, domain: Domain) -> Measure:
        """What it measures; says who wants the value high."""

    @abc.abstractmethod
    def available(self, domain: Domain) -> bool:
        """Whether the domain holds what it needs."""

    @abc.abstractmethod
    def content(self, domain: Domain) -> str:
        """Content hash of what it reads of the domain, which enters a cell's identity."""

    @abc.abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        """Read and tokenize what is needed.

        The probe raises NonFinite where logits are not finite: such a model has no score.
        """

    def wearing(self, disguise: Disguise) -> Evaluation:
        """The evaluation as an attacker asks it who trained in that disguise; one that has no words to disguise stays plain."""
        return self

    @abc.abstractmethod
    def at_milestone(self, domain: Domain) -> Evaluation | None:
        """What stands for it at the milestones between the first and the last step: itself, a sample, or nothing."""
