"""Texts after many prompts at once are those that each prompt would get alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.engine import greedy as module
from holdfast.engine.greedy import greedy
from tests.engine.test_continuing import RECURRENT, made

PROMPTS = [
    (1, 5, 9, 13, 6),
    (1, 5, 9, 30),
    (1, 5, 9, 13, 6, 7, 8, 31, 4),
    (1, 5, 9, 2, 22, 23, 24),
    (1, 5, 9, 30, 17, 18, 19),
]
"""They have their first three tokens in common."""

NEW = 6

UNSUITED = (*RECURRENT, "gemma2")
"""Families that padding does not suit. Of this gemma2 the window is shorter than the texts."""


def alone(model: PreTrainedModel, prompt: Sequence[int], ends: Sequence[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            word = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        if word in ends:
            break
        tokens.append(word)
    return tokens[len(prompt) :]


def ends_of(model: PreTrainedModel) -> list[int]:
    """Words that some texts say early, so that rows leave the batch one after the other."""
    texts = [alone(model, prompt, []) for prompt in PROMPTS]
    return [texts[0][1], texts[3][3]]


SOME = ["llama", "gpt2", "gemma2", "bloom", "jamba"]
REST = [pytest.param(family, marks=pytest.mark.slow) for family in ("opt", "falcon", *RECURRENT) if family not in SOME]


@pytest.mark.parametrize("family", [*SOME, *REST])
def test_a_text_in_a_batch_is_the_text_that_a_prompt_gets_alone(family: str) -> None:
    model = made(family)
    ends = ends_of(model)
    expected = [alone(model, prompt, ends) for prompt in PROMPTS]
    for _ in range(2):
        assert greedy(model, PROMPTS, NEW, ends) == expected
    assert len(set(map(len, expected))) > 1, "no row leaves before another"
    together = module._suited[model].get("together")
    assert together is not None
    assert together[1] is (family not in UNSUITED)
    # A prompt that is alone, and prompts of one length.
    assert greedy(model, PROMPTS[:1], NEW, ends) == expected[:1]
    assert greedy(model, PROMPTS[3:], NEW, ends) == expected[3:]


def test_prompts_need_no_common_beginning() -> None:
    model, prompts = made("llama"), [prompt[3:] for prompt in PROMPTS]
    assert greedy(model, prompts, NEW, ()) == [alone(model, prompt, ()) for prompt in prompts]
    assert module._suited[model]["together"][1]


def test_every_token_is_read_once_and_a_row_that_has_ended_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    ends = ends_of(model)
    texts = greedy(model, PROMPTS, NEW, ends)
    read: list[int] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(int(kwargs["input_ids"].numel()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    assert greedy(model, PROMPTS, NEW, ends) == texts
    # The common beginning; the rest, padded; and then a token of each text that goes on.
    going = [sum(len(text) > place for text in texts) for place in range(NEW - 1)]
    assert read == [3, len(PROMPTS) * 6, *(count for count in going if count)]


def test_a_batch_has_no_more_than_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = made("llama"), list[int]()
    expected = greedy(model, PROMPTS, NEW, ())
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(module, "_KEPT_AT_ONCE", 2 * (9 + NEW))
    assert greedy(model, PROMPTS, NEW, ()) == expected
    assert max(rows) == 2


def test_padding_that_a_model_does_not_see_as_such_is_found_out() -> None:
    """A model that ignores masks writes other texts when others stand beside; none of these is taken."""
    model = made("llama")
    expected = [alone(model, prompt, ()) for prompt in PROMPTS]
    forward = model.forward

    def deaf(*args: Any, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    model.forward = deaf
    assert greedy(model, PROMPTS, NEW, ()) == expected
    assert module._suited[model]["together"][1] is False
    assert module._suited[model]["by length"][1] is True
