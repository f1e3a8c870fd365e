"""The parts of a model, found from its structure: layers, attention, MLP, the residual stream and its writers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits (B x T x V) and the residual stream after the embedding and after every layer (L + 1 times B x T x H).

    The last state is after the final norm, as transformers gives it.
    """
    output = model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
    return output.logits, output.hidden_states


def residual_stream(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B x T x V) and every layer's output (L times B x T x H); the last output is before the final norm too."""
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    try:
        return model(input_ids=input_ids, use_cache=False).logits, outputs
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(model: PreTrainedModel, chosen: Sequence[int] | None = None) -> list[torch.nn.Module]:
    """The blocks of the residual stream, first to last, or only the chosen blocks, counted from 0.

    Raises:
        HoldfastError: the architecture has no list of blocks, or too few blocks.
    """
    count = model.config.get_text_config().num_hidden_layers
    layers = next((m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), None)
    if layers is None:
        raise HoldfastError(f"the architecture {type(model).__name__} has no list of {count} layers, which this needs")
    if chosen is not None and not all(0 <= index < count for index in chosen):
        raise HoldfastError(
            f"layers {', '.join(map(str, chosen))} were asked for and the model has layers 0 to {count - 1}"
        )
    return [layers[index] for index in (range(count) if chosen is None else chosen)]


def feed_forward(layer: torch.nn.Module) -> torch.nn.Module:
    """The MLP of a decoder layer.

    Raises:
        HoldfastError: no part of the layer has the name of an MLP.
    """
    for name, module in layer.named_children():
        # A dropout may be named after the MLP that it follows.
        if any(part in name.lower() for part in ("mlp", "feed_forward", "ffn", "moe")) and list(module.parameters()):
            return module
    raise HoldfastError(f"a layer of kind {type(layer).__name__} has no MLP by name, which this needs")


def attention(layer: torch.nn.Module) -> torch.nn.Module:
    """The attention of a decoder layer, or its substitute.

    Raises:
        HoldfastError: no part of the layer has the name of an attention.
    """
    for name, module in layer.named_children():
        # Norms and dropouts are named after what they follow.
        if any(part in name.lower() for part in ("attn", "attention")) and _linear_maps(module):
            return module
    raise HoldfastError(
        f"a layer of kind {type(layer).__name__} has no attention of plain linear maps, which this needs"
    )


def residual_writers(layer: torch.nn.Module) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """The last linear maps of a decoder layer's attention and of its MLP, which write into the residual stream.

    Raises:
        HoldfastError: the layer has no such map.
    """
    return _linear_maps(attention(layer))[-1], _last_of_mlp(layer)


def down_projection(layer: torch.nn.Module) -> torch.nn.Parameter:
    """The weight of the last linear map of a decoder layer's MLP, which writes into the residual stream.

    Raises:
        HoldfastError: the MLP holds no plain linear map.
    """
    return _last_of_mlp(layer).get_parameter("weight")


def _last_of_mlp(layer: torch.nn.Module) -> torch.nn.Linear:
    linear = _linear_maps(feed_forward(layer))
    if not linear:
        raise HoldfastError(f"the MLP of a layer of kind {type(layer).__name__} holds no plain linear map")
    return linear[-1]


def _linear_maps(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [part for part in module.modules() if isinstance(part, torch.nn.Linear)]


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the residual stream and the output embedding."""
    named = [module for name, module in model.base_model.named_children() if "norm" in type(module).__name__.lower()]
    return named[-1] if named else torch.nn.Identity()


def kept_keys(output: Any) -> Any:
    """The keys and values that a forward pass kept, for the next one.

    Raises:
        HoldfastError: the architecture keeps no keys.
    """
    if getattr(output, "past_key_values", None) is None:
        raise HoldfastError(
            "the model keeps a state in place of keys and values, so it cannot be measured; give one with attention"
        )
    return output.past_key_values


def mode_switch(model: torch.nn.Module) -> Callable[[bool], None]:
    """`model.train(…)` without the walk through the modules, which would cost a loop of short steps percents of its time."""
    namespaces = [vars(module) for module in model.modules()]

    def switch(training: bool) -> None:
        for attributes in namespaces:
            attributes["training"] = training

    return switch
