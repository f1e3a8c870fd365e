"""What stands in for a model that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput


class Writer(torch.nn.Module):
    """Writes what `answer` gives for the tokens of a prompt; it keeps nothing, so that all is read again for every token."""

    device = torch.device("cpu")

    def __init__(self, answer: Callable[[tuple[int, ...]], Sequence[int]], words: int) -> None:
        super().__init__()
        self.answer, self.words = answer, words
        self._texts: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}

    def forward(self, input_ids: torch.Tensor, use_cache: bool, **_: Any) -> CausalLMOutput:
        if use_cache:
            raise ValueError("the model keeps nothing")
        logits = torch.zeros(*input_ids.shape, self.words)
        for place, row in enumerate(map(tuple, input_ids.tolist())):
            text, said = self._texts.get(row) or (self.answer(row), 0)
            self._texts[*row, text[said]] = text, min(said + 1, len(text) - 1)
            logits[place, -1, text[said]] = 1.0
        return CausalLMOutput(logits=logits)
