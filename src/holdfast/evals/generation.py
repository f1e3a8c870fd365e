"""Greedy continuations of prompts, all prompts of one length at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from holdfast.core.types import NonFinite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Continue = Callable[[PreTrainedModel], list[list[int]]]
    """Returns a live model's continuation of each prompt, as tokens, in the prompts' order."""


def prepare_continuations(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int) -> Continue:
    """Tokenize prompts once. The returned function writes at most `new_tokens` after each, without the end token."""
    import torch

    from holdfast.engine.continuing import keeps_right
    from holdfast.engine.tokens import end_tokens, prompt_ids

    places: defaultdict[int, list[int]] = defaultdict(list)
    ids = prompt_ids(tokenizer, prompts)
    for place, tokens in enumerate(ids):
        places[len(tokens)].append(place)
    batches = [(at, torch.tensor([ids[place] for place in at])) for _, at in sorted(places.items())]

    def write(model: PreTrainedModel) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        ends = end_tokens(tokenizer, model)
        more = new_tokens - 1  # the last token is written and not read
        keeping = more > 0 and keeps_right(model, batches[-1][1].tolist(), more, at_once=False)
        with torch.no_grad():
            for at, batch in batches:
                for place, text in zip(at, _continue(model, batch, new_tokens, ends, keeping), strict=True):
                    texts[place] = text
        return texts

    return write


def _continue(
    model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int, ends: tuple[int, ...], keeping: bool
) -> list[list[int]]:
    """Greedy continuations of prompts of one length, each up to and without the first of the end tokens."""
    import torch

    from holdfast.engine.continuing import read, read_on

    text, drawn = read(model, prompts.to(model.device), keeping=keeping), list[torch.Tensor]()
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    while True:
        if not torch.isfinite(text.logits).all():
            raise NonFinite("the model's logits are not finite, so its text has no score")
        drawn.append(text.logits.argmax(-1, keepdim=True))
        for end in ends:
            ended |= drawn[-1][:, 0] == end
        if len(drawn) >= new_tokens or ended.all():
            break
        text = read_on(model, text, drawn[-1])
    texts = torch.cat(drawn, dim=1).tolist()
    return [list(takewhile(lambda token: token not in ends, text)) for text in texts]
