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

    from holdfast.engine.anatomy import kept_keys
    from holdfast.engine.data import Encoded
    from holdfast.engine.tokens import end_tokens

    tokenizer = data.tokenizer
    banned, words = list(data.hazard_tokens()), [word.lower() for word in data.domain.hazard_words]
    start, ends = tokenizer.bos_token_id, end_tokens(tokenizer, model)
    if not isinstance(start, int):
        raise HoldfastError("the tokenizer has no start token to write text from; use rows of [data.distill] instead")
    generator = torch.Generator().manual_seed(seed)
    rows: list[Encoded] = []
    for _ in range(_TRIES * (count // _ROWS_AT_ONCE + 1)):
        ids = torch.full((_ROWS_AT_ONCE, 1), start, device=model.device)
        texts, cache = [ids.cpu()], None
        with torch.no_grad():
            while len(texts) < data.domain.max_length:
                output = model(input_ids=ids, past_key_values=cache, use_cache=True)
                logits, cache = output.logits[:, -1].float().cpu(), kept_keys(output)
                logits[:, banned] = -torch.inf
                sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                texts.append(sampled)
                ids = sampled.to(model.device)
        for row in torch.cat(texts, dim=1).tolist():
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
