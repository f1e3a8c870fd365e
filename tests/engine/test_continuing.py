"""What a model kept of a text is used where that gives what reading all again gives, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.engine.continuing import after_each, alike, keeps_right, read, read_on
from holdfast.engine.mixed import exact, multiply_in_bfloat16
from tests.families.small import build

WORDS = 40
RECURRENT = ("jamba", "bamba", "minimax", "xlstm", "mamba", "rwkv", "granitemoehybrid")
"""Families that keep a state that is no keys and values, or for which several tokens at once go wrong."""


def made(family: str) -> PreTrainedModel:
    """A small model whose states matter for what follows."""
    model = build(family, WORDS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def reading_all(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


PREFIXES = torch.tensor([[1, 5, 9, 13, 6], [1, 7, 8, 30, 31]])
COUNTS = torch.tensor([2, 3])
CONTINUATIONS = torch.tensor([[4, 5, 6], [9, 8, 7], [10, 11, 12], [20, 21, 0], [33, 0, 0]])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "zamba2", *RECURRENT])
def test_options_are_scored_as_if_all_were_read_again(family: str) -> None:
    model = made(family)
    with torch.no_grad():
        keeping = keeps_right(model, PREFIXES.tolist(), 3, at_once=True)
        text = read(model, PREFIXES, keeping=keeping)
        scored = after_each(model, text, COUNTS, CONTINUATIONS)
    whole = reading_all(model, torch.cat([PREFIXES.repeat_interleave(COUNTS, dim=0), CONTINUATIONS], dim=1))
    torch.testing.assert_close(text.logits, whole[[0, 2], 4], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scored, whole[:, 5:], rtol=1e-3, atol=1e-4)
    assert keeping is (family not in RECURRENT)


@pytest.mark.parametrize("family", ["llama", *RECURRENT])
def test_a_text_grows_token_by_token_as_if_all_were_read_again(family: str) -> None:
    model = made(family)
    with torch.no_grad():
        text = read(model, PREFIXES, keeping=keeps_right(model, PREFIXES.tolist(), 3, at_once=False))
        for _ in range(3):
            whole = reading_all(model, text.tokens)[:, -1]
            torch.testing.assert_close(text.logits, whole, rtol=1e-3, atol=1e-4)
            text = read_on(model, text, whole.argmax(-1, keepdim=True))


@pytest.mark.parametrize("at_once", [True, False])
def test_rounded_products_are_no_fault_of_what_was_kept(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rounded = made("llama"), list[bool]()
    multiply_in_bfloat16(model)
    forward = model.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        rounded.append(torch.is_autocast_enabled("cpu"))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", seen)
    assert keeps_right(model, PREFIXES.tolist(), 3, at_once=at_once)
    assert rounded
    assert not any(rounded), "compared in the precision of the weights"


def test_logits_of_rounded_products_may_be_further_apart() -> None:
    model, whole = made("llama"), torch.randn(2, 3, WORDS, generator=torch.Generator().manual_seed(0))
    near, far = 1.02 * whole, 1.5 * whole
    assert not alike(model, near, whole)
    multiply_in_bfloat16(model)
    assert alike(model, near, whole)
    assert not alike(model, far, whole)
    with exact(model):
        assert not alike(model, near, whole)


def test_what_is_compared_once_is_compared_again_for_a_longer_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = made("llama"), 0
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    for more, expected in ((3, True), (3, False), (2, False), (4, True)):
        passes = 0
        assert keeps_right(model, PREFIXES.tolist(), more, at_once=True)
        assert (passes > 0) is expected


def test_comparing_changes_no_weight_and_draws_nothing() -> None:
    model = made("jamba")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert not keeps_right(model, PREFIXES.tolist(), 3, at_once=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
