"""Text that a model writes after given tokens, and where a row's own answer begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from holdfast.engine.continuing import keeps_right, read, read_on
from holdfast.engine.data import UNLABELLED, Encoded
from holdfast.engine.ranks import agreed
from holdfast.engine.sharded import reshard

_ANSWER = 0.2
"""share of a plain text, at its end, that stands for the answer"""


def prompt_and_answer(row: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a row that a model goes on from, and those that follow.

    The answer begins with the first token to be learned. All tokens of a plain text are to be learned: its last fifth, and at
    least two tokens, are the answer.
    """
    first = next((place for place, label in enumerate(row.labels) if label != UNLABELLED), len(row.ids))
    if first == 0:
        first = max(len(row.ids) - max(round(_ANSWER * len(row.ids)), 2), 1)
    return row.ids[:first], row.ids[first:]


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Encoded:
    """A row of a prompt and an answer, of which the answer is to be learned."""
    return Encoded((*prompt, *answer), (*[UNLABELLED] * len(prompt), *answer))


def sampled(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], lengths: Sequence[int], generator: torch.Generator
) -> list[tuple[int, ...]]:
    """An answer to each prompt, sampled at temperature 1: as many tokens as `lengths` says, on every rank the same.

    Prompts of one length go through the model together.
    """
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[len(prompt)].append(place)
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    with torch.no_grad():
        for _, at in sorted(places.items()):
            rows = torch.tensor([list(prompts[place]) for place in at], device=model.device)
            most = max(lengths[place] for place in at)
            # The last token is written and not read.
            keeping = most > 1 and keeps_right(model, rows.tolist(), most - 1, at_once=False)
            text, drawn = read(model, rows, keeping=keeping), list[torch.Tensor]()
            while True:
                chances = text.logits.float().softmax(-1).cpu()
                drawn.append(torch.multinomial(chances, 1, generator=generator).to(model.device))
                if len(drawn) == most:
                    break
                text = read_on(model, text, drawn[-1])
            for place, tokens in zip(at, torch.cat(drawn, dim=1).tolist(), strict=True):
                answers[place] = tuple(tokens[: lengths[place]])
    reshard(model)
    return agreed(answers)  # a rank on another kind of machine may round, and so draw, otherwise
