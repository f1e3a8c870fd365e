"""Whether the model still writes: how much of the model's greedy text repeats itself.

A destroyed model can look safe, and repetition is the most common sign of a destroyed model. The measure is seq-rep-n of
Welleck et al. (arXiv 1908.04319): the share of n-grams in a continuation that already occurred in that continuation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.types import Measure, Score
from holdfast.evals.base import Evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain
    from holdfast.evals.base import Probe


@dataclass(frozen=True, kw_only=True)
class Degeneracy(Evaluation):
    """Share of repeated n-grams in greedy continuations of benign prompts; an early end of text counts as no repetition."""

    prompts: int = 16
    """number of prompts, from the domain's ability questions"""
    new_tokens: int = 16
    """maximum length of a continuation, in tokens"""
    ngram: int = 2
    """n; the paper's 4 is for texts of hundreds of tokens"""

    def measures(self, domain: Domain) -> Measure:
        return "degeneracy"

    def available(self, domain: Domain) -> bool:
        return bool(self._sets(domain))

    def content(self, domain: Domain) -> str:
        return "".join(domain.questions(name).digest for name in self._sets(domain))

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        return None

    def positions(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> int:
        from holdfast.engine.tokens import prompt_ids

        return max(map(len, prompt_ids(tokenizer, self._sample(domain)))) + self.new_tokens - 1

    def _sample(self, domain: Domain) -> list[str]:
        questions = [question for name in self._sets(domain) for question in domain.questions(name).questions]
        count = min(self.prompts, len(questions))
        return [questions[i * len(questions) // count].prompt for i in range(count)]

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        from holdfast.evals.generation import prepare_continuations

        write = prepare_continuations(tokenizer, self._sample(domain), self.new_tokens)

        def probe(model: PreTrainedModel) -> list[Score]:
            shares = [self._repetition(text) for text in write(model)]
            mean = sum(shares) / len(shares)
            variance = sum((share - mean) ** 2 for share in shares) / max(len(shares) - 1, 1)
            return [Score(metric="repetition", value=mean, stderr=(variance / len(shares)) ** 0.5, n=len(shares))]

        return probe

    def _repetition(self, tokens: list[int]) -> float:
        grams = [tuple(tokens[i : i + self.ngram]) for i in range(len(tokens) - self.ngram + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    def _sets(self, domain: Domain) -> list[str]:
        return [name for name in sorted(domain.question_sources) if domain.questions(name).measures == "ability"]


PRESETS = {"degeneracy": Degeneracy()}
