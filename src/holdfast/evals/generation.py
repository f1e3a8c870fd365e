"""Greedy continuations of prompts, which the evaluations of a model share.

Several evaluations ask the same prompts: what complies and what is incoherent are two counts of the same answers. Within
`sharing()` each text is written once. Texts are kept for as long as the model's weights are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.engine.fingerprint import Fingerprint

    Continue = Callable[[PreTrainedModel], list[list[int]]]
    """Returns a live model's continuation of each prompt, as tokens, in the prompts' order."""

    Prompt = tuple[int, ...]
    """The tokens of a prompt."""


def prepare_continuations(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int) -> Continue:
    """Tokenize prompts once. The returned function writes at most `new_tokens` after each, without the end token."""
    from holdfast.engine.tokens import end_tokens, prompt_ids

    ids = [tuple(tokens) for tokens in prompt_ids(tokenizer, prompts)]

    def write(model: PreTrainedModel) -> list[list[int]]:
        ends = end_tokens(tokenizer, model)
        texts = _shared.get()
        if texts is None:
            texts = _Texts()
        else:
            texts.drop_unless_of(model, ends)
        return texts.after(model, ids, new_tokens, ends)

    return write


@contextmanager
def sharing() -> Iterator[None]:
    """Let all evaluations of a model that are asked in this block share what the model writes.

    A change of weights in the block is noticed, and what was written before it is dropped. Hooks and settings of the model
    have to stay as they are.
    """
    token = _shared.set(_Texts())
    try:
        yield
    finally:
        _shared.reset(token)


@dataclass(frozen=True)
class _Written:
    """What a model wrote after a prompt."""

    tokens: list[int]
    limit: int
    """the most tokens that it might write; a text of fewer has ended"""

    def after(self, said: Prompt, new_tokens: int) -> list[int] | None:
        """What follows the text's first tokens `said`; None where that is not known, or other tokens come first."""
        end = len(said) + new_tokens
        known = end <= self.limit or len(self.tokens) < self.limit
        return self.tokens[len(said) : end] if known and tuple(self.tokens[: len(said)]) == said else None


class _Texts:
    """What one model wrote, in one state of its weights."""

    def __init__(self) -> None:
        self._written: dict[Prompt, _Written] = {}
        self._writer: tuple[ReferenceType[PreTrainedModel], tuple[int, ...], Fingerprint] | None = None

    def drop_unless_of(self, model: PreTrainedModel, ends: tuple[int, ...]) -> None:
        """Drop all texts if another model wrote them, the weights have changed since, or other tokens ended them."""
        from holdfast.engine.fingerprint import Fingerprint

        now = Fingerprint(model)
        if self._writer is not None:
            writer, their_ends, then = self._writer
            if writer() is model and their_ends == ends and now.matches(then):
                return
        self._written.clear()
        self._writer = ref(model), ends, now

    def after(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], new_tokens: int, ends: tuple[int, ...]
    ) -> list[list[int]]:
        """The text after each prompt, written where it is not known yet."""
        from holdfast.engine.greedy import greedy

        texts = {prompt: self._known(prompt, new_tokens) for prompt in prompts}
        missing = [prompt for prompt, text in texts.items() if text is None]
        written = dict(zip(missing, greedy(model, missing, new_tokens, ends), strict=True))
        self._written |= {prompt: _Written(text, new_tokens) for prompt, text in written.items()}
        return [written[prompt] if (text := texts[prompt]) is None else text for prompt in prompts]

    def _known(self, prompt: Prompt, new_tokens: int) -> list[int] | None:
        """The text after a prompt, if it is part of one that was written: the prompt may end in what the model said itself."""
        longest = max((written.limit for written in self._written.values()), default=0)
        for place in range(len(prompt), max(len(prompt) - longest, 1) - 1, -1):
            written = self._written.get(prompt[:place])
            text = None if written is None else written.after(prompt[place:], new_tokens)
            if text is not None:
                return text
        return None


_shared: ContextVar[_Texts | None] = ContextVar("shared texts", default=None)
