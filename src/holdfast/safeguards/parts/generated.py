"""Generates a retain set from the original model, with the hazard filtered out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data, Encoded

HazardWords = Literal["avoided", "dropped"]
"""What becomes of a hazard word in generated text. *Avoided*: the word is never sampled, and the row goes on with another word.
*Dropped*: the row is not kept, so that the other rows are about as frequent as in what the model writes of its own."""

_ROWS_AT_ONCE = 512
_TRIES = 8
"""The model may generate this many times `count` rows before the filter counts as too strict."""


def generate_rows(
    model: PreTrainedModel, data: Data, count: int, seed: int, hazard_words: HazardWords = "avoided"
) -> list[Encoded]:
    """`count` rows sampled from `model` at temperature 1, from the start token to the end token or `max_length`.

    No row contains one of the domain's `hazard_words`. Where these are avoided, rows that were about the hazard go on about its
    nearest neighbours, of which the text then has too much. Every token is labelled.

    Raises:
        HoldfastError: the domain names no hazard words, the tokenizer has no start token, or nearly every row is dropped.
    """
    import torch

    from holdfast.engine.continuing import keeps_right, of_rows, read, read_on
    from holdfast.engine.data import Encoded
    from holdfast.engine.tokens import end_tokens

    tokenizer = data.tokenizer
    hazardous = torch.tensor(data.hazard_tokens(), dtype=torch.long, device=model.device)
    words = [word.lower() for word in data.domain.hazard_words]
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
                if hazard_words == "avoided":
                    logits[:, hazardous] = -torch.inf
                sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                # A row that has ended already is dropped too where the word would follow its end: a few, with which
                # the figures in docs/results.md were made.
                kept = torch.isin(sampled[:, 0], hazardous, invert=True).nonzero()[:, 0]
                if len(kept) < len(sampled):
                    texts, sampled = of_rows(texts, kept), sampled[kept]
                if not len(kept) or texts.tokens.shape[1] + 1 >= data.domain.max_length:
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
