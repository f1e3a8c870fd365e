"""The likeliest text after each of many prompts: greedy, as many prompts at once as fit, each token read once.

There are three ways, and a model that the first does not suit takes the next. *Together*: prompts of different lengths in one
batch, their common beginning read once. *By length*: prompts of one length in a batch. *Again*: by length, and all is read
again for every token. The first two keep keys and values. What they wrote is compared with a pass that keeps nothing, for the
shortest and the longest prompt of a batch, once for each model and way, and again where a longer text comes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from holdfast.core.types import NonFinite
from holdfast.engine.continuing import Text, alike, of_rows, read, read_on, read_together
from holdfast.engine.ranks import agreed
from holdfast.engine.tokens import common_prefix

_KEPT_AT_ONCE = 2**14
"""Tokens whose keys and values are kept at once: 2 GB for a model of 8 billion weights in bfloat16."""

_COMPARED = 2**26
"""Logits of a row that are compared, at most; of a longer text the last ones."""

Rows = Sequence[Sequence[int]]


def greedy(model: PreTrainedModel, prompts: Rows, new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
    """What a model writes after each prompt, in the prompts' order: at most `new_tokens`, without the end token.

    Args:
        model: in evaluation mode.
        prompts: the tokens of each prompt, none empty.
        new_tokens: at least 1.
        ends: the tokens that end a text. A row whose text has ended leaves the batch.

    Raises:
        NonFinite: the model's logits are not finite.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad():
        for at in _batches(prompts, new_tokens):
            for place, text in zip(at, _texts(model, [prompts[i] for i in at], new_tokens, ends), strict=True):
                texts[place] = text
    return texts


def _batches(prompts: Rows, new_tokens: int) -> Iterator[list[int]]:
    """Places of prompts, the longest first, in batches of about one length."""
    places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]), reverse=True)
    while places:
        size = max(_KEPT_AT_ONCE // (len(prompts[places[0]]) + new_tokens), 1)
        yield places[:size]
        places = places[size:]


def _texts(model: PreTrainedModel, rows: Rows, new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
    """The texts of a batch, in the first way that suits the model."""
    texts = _kept(model, rows, new_tokens, ends, "together") if len(rows) > 1 else None
    if texts is not None:
        return texts
    by_length, written = defaultdict[int, list[int]](list), dict[int, list[int]]()
    for place, row in enumerate(rows):
        by_length[len(row)].append(place)
    for at in by_length.values():
        some = [rows[place] for place in at]
        texts = (
            _kept(model, some, new_tokens, ends, "by length")
            or _written(model, read(model, _tensor(model, some), keeping=False), new_tokens, ends).texts
        )
        written |= dict(zip(at, texts, strict=True))
    return [written[place] for place in range(len(rows))]


_Way = Literal["together", "by length"]

_suited: WeakKeyDictionary[PreTrainedModel, dict[_Way, tuple[int, bool]]] = WeakKeyDictionary()
"""By model and way: the longest text compared, and whether the way suits the model."""


def _kept(
    model: PreTrainedModel, rows: Rows, new_tokens: int, ends: Sequence[int], way: _Way
) -> list[list[int]] | None:
    """The texts of a batch from kept keys and values; None where this way does not suit the model."""
    ways = _suited.setdefault(model, {})
    compared, suits = ways.get(way, (0, True))
    if not suits:
        return None
    try:
        if way == "together":
            text = read_together(model, rows, min(_common(rows), min(map(len, rows)) - 1))
        else:
            text = read(model, _tensor(model, rows), keeping=True)
        written = _written(model, text, new_tokens, ends)
    except torch.OutOfMemoryError:
        raise
    except NonFinite:  # of the padding, or of the model: the last way tells
        return None
    except Exception:  # whatever an architecture without such keys raises, the next way is taken
        ways[way] = compared, False
        return None
    length = len(rows[0]) + new_tokens
    if compared < length:
        suits = all(agreed(written.agrees(model, place, rows[place])) for place in {0, len(rows) - 1})
        # A batch without padding says nothing about padding.
        if not suits or way == "by length" or len(set(map(len, rows))) > 1:
            ways[way] = length, suits
    return written.texts if suits else None


@dataclass(frozen=True)
class _Written:
    """The texts of a batch."""

    texts: list[list[int]]
    drawn: list[list[int]]
    """the same with the end token"""
    logits: dict[int, deque[torch.Tensor]]
    """of the first row and of the last, those that the last tokens were drawn by"""

    def agrees(self, model: PreTrainedModel, place: int, prompt: Sequence[int]) -> bool:
        """Whether a pass that keeps nothing gives the logits that a row's tokens were drawn by."""
        logits = torch.stack(list(self.logits[place]))
        tokens = _tensor(model, [[*prompt, *self.drawn[place][:-1]]])
        whole = model(input_ids=tokens, use_cache=False, logits_to_keep=len(logits)).logits[0, -len(logits) :]
        return alike(model, logits, whole)


def _written(model: PreTrainedModel, text: Text, new_tokens: int, ends: Sequence[int]) -> _Written:
    """Write on, each row up to the first of the end tokens."""
    count, words = text.logits.shape
    rows = torch.arange(count, device=text.logits.device)
    stops = torch.tensor(list(ends), device=rows.device, dtype=torch.long)
    drawn: list[list[int]] = [[] for _ in range(count)]
    logits = {place: deque[torch.Tensor](maxlen=max(_COMPARED // words, 1)) for place in {0, count - 1}}
    while True:
        if not torch.isfinite(text.logits).all():
            raise NonFinite("the model's logits are not finite, so its text has no score")
        # Ranks that round otherwise write the same text, and so make the same passes.
        chosen = agreed(text.logits.argmax(-1).tolist())
        token = torch.tensor(chosen, device=rows.device)
        for place, row, word in zip(rows.tolist(), text.logits, chosen, strict=True):
            drawn[place].append(word)
            if place in logits:
                logits[place].append(row.clone())
        going = (~torch.isin(token, stops)).nonzero()[:, 0]
        if len(drawn[int(rows[0])]) >= new_tokens or not len(going):
            break
        if len(going) < len(rows):
            text, rows, token = of_rows(text, going), rows[going], token[going]
        text = read_on(model, text, token[:, None])
    return _Written([row[:-1] if row[-1] in ends else row for row in drawn], drawn, logits)


def _tensor(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    return torch.tensor([list(row) for row in rows], device=model.device)


def _common(rows: Rows) -> int:
    """How many first tokens all rows have in common."""
    tokens = [tuple(row) for row in rows]
    return common_prefix(min(tokens), max(tokens))
