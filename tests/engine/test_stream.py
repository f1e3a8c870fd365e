"""The states alone are those of the whole pass, with the same gradients, and nothing behind them is computed."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.stream import hidden_states, states_alone

IDS = torch.tensor([[5, 3, 8, 1, 9, 2], [4, 4, 7, 6, 1, 3]])


def _model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes)).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=4, n_head=2)).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("chosen", [None, (0,), (2,), (3, 1), (4,), (1, 4)])
@pytest.mark.parametrize("recomputed", [False, True])
def test_states_and_gradients_are_those_of_the_whole_pass(
    kind: str, chosen: tuple[int, ...] | None, recomputed: bool
) -> None:
    model = _model(kind)
    if recomputed:
        model.enable_input_require_grads()
        model.train()
        model.activation_checkpointing_enable()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
    gradients = []
    for states in (
        hidden_states(model, IDS)[1],
        states_alone(model, IDS, chosen),
    ):
        picked = states if chosen is None or len(states) == len(chosen) else tuple(states[index] for index in chosen)
        model.zero_grad()
        sum((place + 1) * state.square().sum() for place, state in enumerate(picked)).backward()
        gradients.append([picked, [p.grad for p in model.parameters()]])
    (whole, slopes), (alone, slopes_alone) = gradients
    assert all(torch.equal(left, right) for left, right in zip(whole, alone, strict=True))
    for left, right in zip(slopes, slopes_alone, strict=True):
        assert (left is None or not left.any()) if right is None else torch.equal(left, right)


def test_nothing_behind_the_deepest_state_is_computed() -> None:
    model = _model("llama")
    ran: list[str] = []
    for place, layer in enumerate(decoder_layers(model)):
        layer.register_forward_hook(lambda *_, place=place: ran.append(f"layer {place}"))
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    states_alone(model, IDS, (2, 1))
    assert ran == ["layer 0", "layer 1"]
    ran.clear()
    states_alone(model, IDS)
    assert ran == [f"layer {place}" for place in range(4)]


def test_an_error_of_the_model_is_not_taken_for_the_end() -> None:
    model = _model("llama")

    def broken(*_: object) -> None:
        raise ValueError("broken")

    decoder_layers(model)[0].register_forward_hook(broken)
    with pytest.raises(ValueError, match="broken"):
        states_alone(model, IDS, (2,))
