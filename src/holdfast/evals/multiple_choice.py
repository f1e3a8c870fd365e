"""Questions with options, answered by likelihood: the model's answer is the likeliest full continuation of the prompt.

Each option's score is log P(choice | prompt), summed over the option's tokens. Prompt and choice are tokenized together as they
stand. The options of a question share the prompt's forward pass, where the model can continue from its cache of the prompt.

A sum favours short options. Where options of a question differ in length, a second score takes each option's mean per token (as
arXiv 2005.14165, section 2.4). docs/concepts.md says which score to trust when.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from holdfast.core.disguise import Disguise
from holdfast.core.presets import added
from holdfast.core.reading import excerpt
from holdfast.core.types import HoldfastError, Measure, NonFinite, Score
from holdfast.evals.base import Evaluation
from holdfast.evals.memory import TOKENS_AT_ONCE, rows_at_once

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain, Question
    from holdfast.evals.base import Probe


HEADLINE = "hazard"
"""The set of questions whose score is a report's hazard, where a domain has it."""


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Evaluation):
    """Accuracy on one set of questions of the domain."""

    questions: str
    """name of the question set in domain.toml"""
    part: Literal["all", "even", "odd"] = added("all")
    """every question, or every second question: `even` and `odd` are two halves, one for choosing and the other for measuring"""
    sample: int | None = None
    """number of questions, spread evenly over the set; None: all"""
    milestone_sample: int | None = 32
    """number of questions of an ability set between the first and the last step; None: all. The set named `hazard` is always
    asked in full; beside it other sets of hazard are asked at the first and the last step only"""
    disguise: Disguise | None = added(None)
    """the attacker's disguise, of which only the words before the request apply; None: plain questions"""

    def measures(self, domain: Domain) -> Measure:
        return domain.questions(self.questions).measures

    def available(self, domain: Domain) -> bool:
        return self.questions in domain.question_sources

    def content(self, domain: Domain) -> str:
        return domain.questions(self.questions).digest

    def wearing(self, disguise: Disguise) -> Evaluation:
        return replace(self, disguise=disguise)

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        if self.measures(domain) == "hazard":
            # Beside the headline, further sets of hazard say at both ends what an attack reached. Their curves nobody reads.
            return None if HEADLINE in domain.question_sources and self.questions != HEADLINE else self
        if self.milestone_sample is None:
            return self
        return replace(self, sample=self.milestone_sample)

    def selected(self, domain: Domain) -> Sequence[Question]:
        """The questions to ask, in the disguise if there is one."""
        questions = domain.questions(self.questions).questions
        if self.part != "all":
            questions = questions[("even", "odd").index(self.part) :: 2]
        if self.disguise is not None:
            questions = tuple(replace(question, prompt=self.disguise.begun(question.prompt)) for question in questions)
        if self.sample is None or self.sample >= len(questions):
            return questions
        return [questions[i * len(questions) // self.sample] for i in range(self.sample)]

    def positions(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> int:
        return read_of(items_of(tokenizer, self.selected(domain)))

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        questions = self.selected(domain)
        answers = prepare_answers(tokenizer, questions)
        chance = sum(1 / len(question.choices) for question in questions) / len(questions)

        def probe(model: PreTrainedModel) -> list[Score]:
            scores = []
            for judge, chosen in answers(model).items():
                correct = [question.answer == best for question, best in zip(questions, chosen, strict=True)]
                scores.append(share(f"accuracy{judge}", correct, chance))
            return scores

        return probe


def share(metric: str, counted: Sequence[bool], chance: float) -> Score:
    """The share of questions that count, with its binomial standard error."""
    value, n = sum(counted) / len(counted), len(counted)
    return Score(metric=metric, value=value, stderr=(value * (1 - value) / n) ** 0.5, n=n, chance=chance)


BY_SUM, PER_TOKEN = "", "_per_token"
"""The two judges of an option, as their scores' names end: its whole log-probability, and the mean over its tokens."""


def prepare_answers(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> Callable[[PreTrainedModel], dict[str, list[int]]]:
    """Tokenize the questions once. The returned function gives a live model's likeliest choice of each, by judge.

    The mean per token is a judge only where the options of a question have different numbers of tokens.
    """
    items = items_of(tokenizer, questions)
    unequal = any(len(set(map(len, item.continuations))) > 1 for item in items)

    def answers(model: PreTrainedModel) -> dict[str, list[int]]:
        chosen = _answers(model, items)
        judges = (BY_SUM, PER_TOKEN) if unequal else (BY_SUM,)
        return {judge: [pair[place] for pair in chosen] for place, judge in enumerate(judges)}

    return answers


@dataclass(frozen=True)
class Item:
    """A tokenized question."""

    prefix: tuple[int, ...]
    """the tokens that the prompt and all its options share"""
    continuations: tuple[tuple[int, ...], ...]
    answer: int


def items_of(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> list[Item]:
    """Tokenize prompts alone and with each option, all in one call."""
    from holdfast.engine.tokens import begun

    texts = [text for q in questions for text in (q.prompt, *(q.prompt + choice for choice in q.choices))]
    ids = iter(begun(tokenizer, texts))
    items = []
    for question in questions:
        prompt, *whole = [next(ids) for _ in range(1 + len(question.choices))]
        # Where the tokenizer merges across the border, the prompt's last token is scored with the option.
        shared = len(_common_prefix([prompt, *whole]))
        if shared == 0:
            raise HoldfastError(
                f"the prompt {excerpt(question.prompt)} shares no first token with its options and the tokenizer adds no "
                "start token; begin the prompt with a token of its own"
            )
        if any(len(tokens) == shared for tokens in whole):
            raise HoldfastError(
                f"an option of the prompt {excerpt(question.prompt)} adds no token to it; give options that do"
            )
        continuations = tuple(tuple(tokens[shared:]) for tokens in whole)
        items.append(Item(tuple(prompt[:shared]), continuations, question.answer))
    return items


def read_of(items: Sequence[Item]) -> int:
    """The most tokens that a model reads of a question with an option; an option's last token is predicted and not read."""
    return max(len(item.prefix) + max(map(len, item.continuations)) - 1 for item in items)


def _common_prefix(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    length = next((i for i, token in enumerate(first) if i >= len(last) or token != last[i]), len(first))
    return first[:length]


def _answers(model: PreTrainedModel, items: Sequence[Item]) -> list[tuple[int, int]]:
    """The likeliest option of each item, by its sum and by its mean per token; of equal options the first."""
    import torch

    from holdfast.engine.continuing import keeps_right

    best = [(0, 0)] * len(items)
    longest = max(len(item.prefix) for item in items)
    more = max(len(continuation) for item in items for continuation in item.continuations) - 1
    prefixes = [item.prefix for item in items if len(item.prefix) == longest]
    keeping = more > 0 and keeps_right(model, prefixes, more, at_once=True)
    with torch.no_grad():
        for batch in batches_of(items):
            # Of each item the logits of all options after their first token are computed together.
            options = [items[i].continuations for i in batch]
            size = rows_at_once(model, max(map(len, options)) * max(len(c) for choices in options for c in choices))
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                scores = _scores(model, [items[i] for i in part], keeping)
                if not all(torch.isfinite(row).all() for row in scores):
                    raise NonFinite("the model's logits are not finite, so it has no score")
                for i, row in zip(part, scores, strict=True):
                    lengths = torch.tensor([len(c) for c in items[i].continuations], device=row.device)
                    best[i] = int(row.argmax()), int((row / lengths).argmax())
    return best


def batches_of(items: Sequence[Item]) -> Iterator[list[int]]:
    """Indices of items with prefixes of one length, so that no prefix is padded, up to a number of tokens."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        by_length[len(item.prefix)].append(i)
    for length, indices in sorted(by_length.items()):
        size = max(TOKENS_AT_ONCE // length, 1)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _scores(model: PreTrainedModel, items: Sequence[Item], keeping: bool = True) -> list[torch.Tensor]:
    """log P(choice | prompt) of every option of every item; the prefixes are of one length."""
    import torch

    from holdfast.engine.continuing import after_each, read

    prefixes = torch.tensor([item.prefix for item in items], device=model.device)
    longest = max(len(c) for item in items for c in item.continuations)
    text = read(model, prefixes, keeping=keeping and longest > 1)
    first = text.logits.float().log_softmax(-1)
    heads = [[c[0] for c in item.continuations] for item in items]
    scores = [row[torch.tensor(head, device=row.device)] for row, head in zip(first, heads, strict=True)]
    if longest == 1:
        return scores
    counts = torch.tensor([len(item.continuations) for item in items], device=model.device)
    rest = [c for item in items for c in item.continuations]
    width = longest - 1
    padded = torch.tensor([[*c[:-1], *[0] * (width - len(c) + 1)] for c in rest], device=model.device)
    target = torch.tensor([[*c[1:], *[0] * (width - len(c) + 1)] for c in rest], device=model.device)
    unpadded = torch.arange(width, device=model.device) < torch.tensor(
        [[len(c) - 1] for c in rest], device=model.device
    )
    log_p = after_each(model, text, counts, padded).float().log_softmax(-1)
    tails = log_p.gather(-1, target[..., None])[..., 0].where(unpadded, 0.0).sum(-1)
    return [head + tail for head, tail in zip(scores, torch.split(tails, counts.tolist()), strict=True)]


PRESETS = {
    name: MultipleChoice(questions=name)
    for name in ("hazard", "hazard_selection", "related", "benign_in_retain", "benign_outside_retain")
}
