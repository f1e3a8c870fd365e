"""The end of a model: from any hidden state to logits as the model itself would go."""

from __future__ import annotations

import pytest
import torch

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers, final_norm
from holdfast.engine.lens import lens
from holdfast.engine.stream import hidden_states, residual_stream
from tests.families.small import build

IDS = torch.arange(3, 23).view(2, 10)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
        ("gemma2", {"final_logit_softcapping": 0.3}),
        ("gemma3", {}),
        ("gpt2", {}),
        ("opt", {}),
    ],
)
def test_a_state_goes_to_logits_as_the_last_state_does(family: str, changes: dict[str, float]) -> None:
    """With every layer but the first k taken out, the model ends at state k by itself."""
    model = build(family, 40, **changes)
    with torch.no_grad():
        logits, hidden, end = lens(model, IDS)
        again = model(input_ids=IDS, use_cache=False).logits
        layers = next(part for part in model.get_decoder().modules() if isinstance(part, torch.nn.ModuleList))
        ended = end(hidden[1])
        for index in range(1, len(layers)):
            layers[index].forward = lambda hidden_states, *args, **kwargs: hidden_states
        shorter = model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(logits, again)  # the model is whole again
    spread = (logits - shorter).abs().max()
    assert spread > 1e-5  # else this test would see nothing
    torch.testing.assert_close(ended, shorter, rtol=1e-4, atol=float(spread) * 1e-3)


def test_a_norm_beside_the_last_one_is_not_taken_for_it() -> None:
    model = build("gemma4_text", 40)
    assert final_norm(model) is model.model.norm


def test_the_decoder_of_a_model_that_sees_is_its_language_model() -> None:
    model = build("gemma3", 40)
    layers = decoder_layers(model)
    assert {type(layer).__name__ for layer in layers} == {"Gemma3DecoderLayer"}
    assert final_norm(model) is model.get_decoder().norm
    _, states = residual_stream(model, IDS)
    assert len(states) == len(layers) == 2


def test_several_residual_streams_are_refused_where_one_is_needed() -> None:
    model = build("deepseek_v4", 40)
    assert hidden_states(model, IDS, several=True)[1][0].shape == (2, 10, 4, 32)
    for use in (hidden_states, residual_stream, lens):
        with pytest.raises(HoldfastError, match="several residual streams"):
            use(model, IDS)
