"""A model that has no gradient in evaluation mode is refused before anything is trained on it."""

from __future__ import annotations

import copy

import pytest
import torch

from holdfast.core.types import HoldfastError
from holdfast.engine.differentiable import check_differentiable
from tests.families.small import build


@pytest.mark.parametrize("family", ["llama", "xlm", "gpt_oss", "mamba", "recurrent_gemma"])
def test_a_model_that_can_be_trained_passes_and_is_left_as_it_was(family: str) -> None:
    model = build(family, 40)
    model.requires_grad_(False)  # as a base model is
    state = torch.get_rng_state()
    check_differentiable(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    copy.deepcopy(model)  # raises where a module keeps a tensor with a graph


def test_a_model_that_takes_gradients_in_training_mode_only_is_refused() -> None:
    with pytest.raises(HoldfastError, match=r"a ReformerModelWithLMHead, has no gradient in evaluation mode"):
        check_differentiable(build("reformer", 40))


def test_memory_that_runs_out_is_no_property_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", 40)

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        check_differentiable(model)
