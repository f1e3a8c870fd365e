"""Generates a retain set from the original model, with the hazard filtered out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data, Encoded

_ROWS_AT_ONCE = 512
_TRIES = 4
"""The model may generate this many times `count` rows before the filter counts as too strict."""


def generate_rows(model: PreTrainedModel, data: Data, count: int, seed: int) -> list[Encoded]:
    """`count` rows sampled from `model` at temperature 1, from the start token to the end token or `max_length`.

    The tokens of the domain's `hazard_words` are never sampled, and rows whose text still contains such a word are
    dropped. Every token is labelled.

    Raises:
        HoldfastError: the domain names no hazard words, the tokenizer has no start token, or nearly every row is dropped.
    """
    import torch

    from holdfast.engine.continuing import keeps_right, read, read_on
    from holdfast.engine.data import Encoded
    from holdfast.engine.tokens import end_tokens

    tokenizer = data.tokenizer
    banned, words = list(data.hazard_tokens()), [word.lower() for word in data.domain.hazard_words]
    start, ends = tokenizer.bos_token_id, end_tokens(tokenizer, model)
    if not isinstance(start, int):
        raise HoldfastError("the tokenizer has no start token to write text from; use rows of [data.distill] instead")
    generator = torch.Generator(model.device).manual_seed(seed)
    rows: list[Encoded] = []
    more = data.domain.max_length - 2  # the last token is written and not read
    keeping = more > 0 and keeps_right(model, [[start]], more, at_once=False)
    for _ in range(_TRIES * (count // _ROWS_AT_ONCE + 1)):
        with torch.no_grad():
            texts = read(model, torch.full((_ROWS_AT_ONCE, 1), start, device=model.device), keeping=keeping)
            while True:
                logits = texts.logits.float()
                logits[:, banned] = -torch.inf
                sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                if texts.tokens.shape[1] + 1 >= data.domain.max_length:
                    break
                texts = read_on(model, texts, sampled)
        for row in torch.cat([texts.tokens, sampled], dim=1).tolist():
            # The start token may be the end token too.
            end = next((place for place, token in enumerate(row) if place and token in ends), len(row))
            tokens = tuple(row[: end + 1])
            text = str(tokenizer.decode(list(tokens), skip_special_tokens=True)).lower()
            if len(tokens) > 2 and not any(word in text for word in words):
                rows.append(Encoded(tokens, tokens))
        if len(rows) >= count:
            return rows[:count]
    raise HoldfastError(
        f"of {_TRIES} times {count} generated rows the filter left {len(rows)}; hazard_words in domain.toml are too common"
    )
