"""Whether the model still writes: how much of its own greedy text repeats itself.

A destroyed model can look safe; repetition is the commonest way of being destroyed. The measure is seq-rep-n of Welleck
et al. (arXiv 1908.04319): the share of n-grams in a continuation that already occurred in it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.types import Measure, NonFinite, Score
from holdfast.evals.base import Evaluation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain
    from holdfast.evals.base import Probe


@dataclass(frozen=True, kw_only=True)
class Degeneracy(Evaluation):
    """Share of repeated n-grams in greedy continuations of benign prompts; an early end of text counts as no repetition."""

    prompts: int = 16
    """how many prompts, from the domain's ability questions"""
    new_tokens: int = 16
    """length of a continuation at most"""
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

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        import torch

        held = [question for name in self._sets(domain) for question in domain.questions(name).questions]
        count = min(self.prompts, len(held))
        asked = [held[i * len(held) // count] for i in range(count)]
        by_length: defaultdict[int, list[list[int]]] = defaultdict(list)
        for question in asked:
            by_length[len(ids := list(tokenizer(question.prompt)["input_ids"]))].append(ids)
        batches = [torch.tensor(prompts) for _, prompts in sorted(by_length.items())]
        end = tokenizer.eos_token_id

        def probe(model: PreTrainedModel) -> list[Score]:
            with torch.no_grad():
                texts = [text for prompts in batches for text in _continue(model, prompts, self.new_tokens, end)]
            shares = [self._repetition(text) for text in texts]
            mean = sum(shares) / len(shares)
            variance = sum((share - mean) ** 2 for share in shares) / max(len(shares) - 1, 1)
            return [Score(metric="repetition", value=mean, stderr=(variance / len(shares)) ** 0.5, n=len(shares))]

        return probe

    def _repetition(self, tokens: list[int]) -> float:
        grams = [tuple(tokens[i : i + self.ngram]) for i in range(len(tokens) - self.ngram + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    def _sets(self, domain: Domain) -> list[str]:
        return [name for name in sorted(domain.question_sources) if domain.questions(name).measures == "ability"]


def _continue(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int, end: int | None) -> list[list[int]]:
    """Greedy continuations of prompts of one length, each up to and without the end token."""
    import torch

    from holdfast.core.models import kept_keys

    ids, cache, drawn = prompts.to(model.device), None, list[torch.Tensor]()
    ended = torch.zeros(len(ids), dtype=torch.bool, device=model.device)
    while len(drawn) < new_tokens and not ended.all():
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]
        if not torch.isfinite(logits).all():
            raise NonFinite("the model's logits are not finite, so its text has no score")
        ids, cache = logits.argmax(-1, keepdim=True), kept_keys(output)
        drawn.append(ids)
        if end is not None:
            ended |= ids[:, 0] == end
    texts = torch.cat(drawn, dim=1).tolist()
    return [text[: text.index(end)] if end in text else text for text in texts]


PRESETS = {"degeneracy": Degeneracy()}
