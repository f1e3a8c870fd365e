"""Texts to tokens: the one place that knows which special tokens stand before a text and after it.

Training, scoring, generation and probes all come here, so that a prompt has the same tokens in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.escape import short
from holdfast.core.types import HoldfastError


def begun(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text after the start tokens that the tokenizer puts before every text; no end token is added.

    A text that begins with a special token of its own was rendered by a chat template and is taken as it stands: so a rendered
    conversation has the tokens of the conversation, with one start token where the template writes one, and else with none.
    """
    bare = plain(tokenizer, texts)
    example = next((i for i, ids in enumerate(bare) if ids), 0)
    start = _start(list(tokenizer(texts[example])["input_ids"]), bare[example])
    return [ids if start and ids and _is_special(tokenizer, ids[0]) else [*start, *ids] for ids in bare]


def plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text as it stands: of words, and of conversations, whose template writes all special tokens itself.

    Raises:
        HoldfastError: the tokenizer cannot encode a text, such as an unknown word where it has no token for one.
    """
    try:
        return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    except Exception as error:  # the tokenizers library raises nothing narrower
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise HoldfastError(
            f"the tokenizer cannot encode the data ({short(said, 200)}); repair the tokenizer"
        ) from error


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt that a model goes on from.

    Raises:
        HoldfastError: a prompt has no token to go on from.
    """
    ids = begun(tokenizer, texts)
    for text, tokens in zip(texts, ids, strict=True):
        if not tokens:
            raise HoldfastError(
                f"the prompt {text!r} has no token for this tokenizer; begin the prompt with a known word"
            )
    return ids


def ended(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """The ids of a text with the end token after them, where the tokenizer has one.

    A text that ends in a special token of its own, with or without blanks after it, is complete: it was rendered by a chat
    template, or its end was written by hand.
    """
    end = tokenizer.eos_token_id
    return [*ids] if not isinstance(end, int) or _is_complete(tokenizer, ids, end) else [*ids, end]


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's end token, and those that the model's generation config names."""
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(end for end in ends if isinstance(end, int)))


def common_prefix(left: Sequence[int] | str, right: Sequence[int] | str) -> int:
    """How many items at the start are the same in both."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _start(whole: list[int], bare: list[int]) -> list[int]:
    """The tokens that stand before `bare` in `whole`."""
    places = range(len(whole) - len(bare) + 1)
    return next((whole[:place] for place in places if whole[place : place + len(bare)] == bare), [])


def _is_complete(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end: int) -> bool:
    last = next((token for token in reversed(ids) if token == end or str(tokenizer.decode([token])).strip()), None)
    return last == end or (last is not None and _is_special(tokenizer, last))


def _is_special(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token marks something in place of saying it. An unknown word does neither."""
    hidden = tokenizer.decode([token]) and not tokenizer.decode([token], skip_special_tokens=True)
    return bool(hidden) and token != tokenizer.unk_token_id
