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

    from holdfast.engine.tokens import end_tokens, prompt_ids

    places: defaultdict[int, list[int]] = defaultdict(list)
    ids = prompt_ids(tokenizer, prompts)
    for place, tokens in enumerate(ids):
        places[len(tokens)].append(place)
    batches = [(at, torch.tensor([ids[place] for place in at])) for _, at in sorted(places.items())]

    def write(model: PreTrainedModel) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        ends = end_tokens(tokenizer, model)
        with torch.no_grad():
            for at, batch in batches:
                for place, text in zip(at, _continue(model, batch, new_tokens, ends), strict=True):
                    texts[place] = text
        return texts

    return write


def _continue(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int, ends: tuple[int, ...]) -> list[list[int]]:
    """Greedy continuations of prompts of one length, each up to and without the first of the end tokens."""
    import torch

    from holdfast.engine.anatomy import kept_keys

    ids, cache, drawn = prompts.to(model.device), None, list[torch.Tensor]()
    ended = torch.zeros(len(ids), dtype=torch.bool, device=model.device)
    while len(drawn) < new_tokens and not ended.all():
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1]
        if not torch.isfinite(logits).all():
            raise NonFinite("the model's logits are not finite, so its text has no score")
        ids, cache = logits.argmax(-1, keepdim=True), kept_keys(output)
        drawn.append(ids)
        for end in ends:
            ended |= ids[:, 0] == end
    texts = torch.cat(drawn, dim=1).tolist()
    return [list(takewhile(lambda token: token not in ends, text)) for text in texts]
