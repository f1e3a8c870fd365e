"""Conversations to tokens: what the chat template writes, and which of its tokens are an assistant's answer.

A template is asked, not read. Each answer in turn is replaced by a mark, and what changes in the rendered text is the answer:
so headers, empty thoughts and other turns are never taken for one, whatever the template trims or adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from holdfast.core.escape import short
from holdfast.core.types import HoldfastError
from holdfast.engine.tokens import common_prefix, plain

TODAY = datetime(2024, 7, 26)
"""The day that a template is told where it writes the date: the same rows are the same tokens on every day, and an audit may run
past midnight. It is the day that Llama 3.1's template writes where it has no clock."""

_STOPPED_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('%{code}', '{TODAY.strftime('%' + code)}')" for code in "aAbBcdfHIjmMpSUwWxXyY")
    + " }}{% endmacro %}"
)
"""Stands before a template and hides transformers' clock from it, which no argument can replace."""

Messages = Sequence[Mapping[str, str]]


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[bool]]:
    """Ids of the rendered conversation, and whether each belongs to an assistant's answer or to the end of one.

    Raises:
        HoldfastError: there is no chat template, it refuses the conversation, or an answer cannot be told apart in its text.
    """
    text = render(tokenizer, messages)
    spans = _answers(tokenizer, messages, text)
    ids, *parts = plain(tokenizer, [text, *(text[:place] for span in spans for place in span)])
    learned = [False] * len(ids)
    ends = iter(parts)
    for start, end in spans:
        first, last = common_prefix(next(ends), ids), common_prefix(next(ends), ids)
        if end > start:
            # A token that the answer shares with what stands around it is one of the answer's.
            last = max(last, first + 1)
        learned[first:last] = [True] * (last - first)
    return ids, learned


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt: bool = False) -> str:
    """The text of a conversation, or with `prompt` of a conversation that the assistant is to go on with.

    Raises:
        HoldfastError: there is no chat template, or it refuses the conversation.
    """
    template = _template(tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(turn) for turn in messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )
    except Exception as error:  # a template is a program and may raise whatever it likes
        said = str(error).splitlines()[0] if str(error) else "no reason given"
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        raise HoldfastError(
            f"the tokenizer's chat template refuses a row of 'messages': {kind}{short(said, 200)}"
        ) from error


def exchange(tokenizer: PreTrainedTokenizerBase, before: Messages, answer: str) -> tuple[str, str]:
    """The prompt that `before` makes and the answer, as the chat template writes them; the answer with the end of its turn.

    Raises:
        HoldfastError: as `render`, or the template writes an answer otherwise than after its prompt for one.
    """
    prompt = render(tokenizer, before, prompt=True)
    whole = render(tokenizer, [*before, {"role": "assistant", "content": answer}])
    if not whole.startswith(prompt):
        raise HoldfastError(
            "the tokenizer's chat template does not go on from its own prompt for an answer, so requests cannot be written in "
            "it; name a model whose template does"
        )
    return prompt, whole[len(prompt) :].rstrip()  # a new line after the end of the turn is no part of the answer


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template, with a clock that has stopped where it asks for the time."""
    template = tokenizer.chat_template
    if template is None:
        raise HoldfastError(
            "the data has 'messages' but the tokenizer has no chat template; give it one, or rows of 'text'"
        )
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(template)
            raise HoldfastError(
                f"the tokenizer has several chat templates ({short(names)}) and none is the default; name one 'default'"
            )
        template = template["default"]
    if not isinstance(template, str):
        raise HoldfastError(f"the tokenizer's chat template is a {type(template).__name__}, not a text; mend it")
    return f"{_STOPPED_CLOCK}\n{template}" if "strftime_now" in template else template


def _answers(tokenizer: PreTrainedTokenizerBase, messages: Messages, text: str) -> list[tuple[int, int]]:
    """Where in the rendered text each answer starts and where its end of turn ends, in characters."""
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)  # of those for private use
    spans = []
    for place, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before, after = _around(tokenizer, messages, place, mark)
        start, end = common_prefix(before, text), len(text) - len(after)
        if not text.endswith(after) or end < start:
            raise HoldfastError(
                f"the tokenizer's chat template rewrites other turns by what turn {place + 1} says, so this answer's tokens "
                f"cannot be told apart; {_REMEDY}"
            )
        if place < len(messages) - 1:
            # In a longer conversation, what ends the answer is what also ends it where it is the last.
            _, ending = _around(tokenizer, messages[: place + 1], place, mark)
            end += common_prefix(ending, after)
        else:
            end = len(text)
        spans.append((_opened(tokenizer, messages[:place], text, start), end))
    if any(earlier[1] > later[0] for earlier, later in pairwise(spans)):
        raise HoldfastError(f"the tokenizer's chat template does not write the turns in their order; {_REMEDY}")
    return spans


def _around(tokenizer: PreTrainedTokenizerBase, messages: Messages, place: int, mark: str) -> tuple[str, str]:
    """What the template writes before and after an answer."""
    marked = [*messages[:place], {**messages[place], "content": mark}, *messages[place + 1 :]]
    around = render(tokenizer, marked).split(mark)
    if len(around) != 2:
        how = "leaves out or rewrites" if len(around) == 1 else "repeats"
        raise HoldfastError(
            f"the tokenizer's chat template {how} the assistant's answer in turn {place + 1} of {len(messages)}, so the "
            f"answer's tokens cannot be told apart; {_REMEDY}"
        )
    return around[0], around[1]


def _opened(tokenizer: PreTrainedTokenizerBase, before: Messages, text: str, start: int) -> int:
    """Where the model goes on from: blanks between the generation prompt and the answer are the model's to write."""
    if not before:
        return start
    try:
        prompt = render(tokenizer, before, prompt=True)
    except HoldfastError:  # the template wants more turns than these
        return start
    return len(prompt) if text.startswith(prompt) and not text[len(prompt) : start].strip() else start


_REMEDY = "give rows of 'text' or of 'prompt', 'chosen' and 'rejected'"
