"""The residual stream of a model on a batch, and no more of the forward pass than that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder, decoder_layers
from holdfast.engine.predictions import Enough, Logits, are_many, body_of, body_output, deferred


def hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, *, several: bool = False
) -> tuple[Logits, tuple[torch.Tensor, ...]]:
    """Logits (B x T x V) and the residual stream after the embedding and after every layer (L + 1 times B x T x H).

    Many logits are deferred, as those of `predictions`. The last state is after the final norm, as transformers gives it. Some
    architectures have several residual streams beside each other; where `several` is set, their states come as they are,
    B x T x streams x H.

    Raises:
        HoldfastError: the architecture has several streams and one is needed, or its states are not those of each token.
    """
    logits: Logits
    if are_many(model, input_ids) and (body := body_of(model)) is not None:
        output = body_output(model, body, input_ids, hidden=True)
        logits = deferred(model, body, output)
        states = tuple(
            state.to(model.dtype) for state in output.hidden_states
        )  # under autocast some are of half precision
    else:
        output = model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
        logits, states = output.logits, output.hidden_states
    for state in states:
        check_stream(model, state, input_ids, several=several)
    return logits, states


def states_alone(
    model: PreTrainedModel, input_ids: torch.Tensor, chosen: Sequence[int] | None = None, *, several: bool = False
) -> tuple[torch.Tensor, ...]:
    """The states of `hidden_states`, or only the chosen ones in their order, 0 the embedding's.

    The forward pass ends behind the deepest of them: the layers above and the language-model head are not computed. A model that
    is sharded runs to its end, since FSDP counts on that.

    Raises:
        HoldfastError: as `hidden_states`.
    """
    layers = decoder_layers(model)
    wanted = tuple(range(len(layers) + 1)) if chosen is None else tuple(chosen)
    body = decoder(model)
    if body is model or any(isinstance(module, FSDPModule) for module in model.modules()):
        hidden = hidden_states(model, input_ids, several=several)[1]
        return tuple(hidden[index] for index in wanted)
    seen = (
        dict(enumerate(body_output(model, body, input_ids, hidden=True).hidden_states))
        if max(wanted) == len(layers)
        else _entering(model, layers, wanted, input_ids)
    )
    for index in wanted:
        check_stream(model, seen[index], input_ids, several=several)
    return tuple(seen[index] for index in wanted)


def residual_stream(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B x T x V) and every layer's output (L times B x T x H); the last output is before the final norm too."""
    outputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple | list) else output)
        check_stream(model, outputs[-1], input_ids)

    hooks = [layer.register_forward_hook(keep) for layer in decoder_layers(model)]
    try:
        return model(input_ids=input_ids, use_cache=False).logits, outputs
    finally:
        for hook in hooks:
            hook.remove()


def check_stream(
    model: PreTrainedModel, state: torch.Tensor, input_ids: torch.Tensor, *, several: bool = False
) -> None:
    """Raises:
    HoldfastError: a hidden state is not B x T x H for the tokens B x T; with `several`, nor B x T x streams x H.
    """
    if state.shape[:2] != input_ids.shape or state.dim() > (4 if several else 3):
        raise HoldfastError(
            f"the layers of a {type(model).__name__} write several residual streams, and this needs one; leave this out"
        )


def _entering(
    model: PreTrainedModel, layers: Sequence[torch.nn.Module], wanted: Sequence[int], input_ids: torch.Tensor
) -> dict[int, torch.Tensor]:
    """The chosen states as what enters the layer of the same number, from a pass that ends before the deepest such layer.

    What enters a layer lies outside of whatever recomputes the layer below (activation checkpointing), so its gradient is whole.
    """
    seen: dict[int, torch.Tensor] = {}

    def keep(index: int) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, named: Any) -> None:
            seen[index] = inputs[0] if inputs else named["hidden_states"]
            if index == max(wanted):
                raise Enough

        return hook

    hooks = [layers[index].register_forward_pre_hook(keep(index), with_kwargs=True) for index in set(wanted)]
    try:
        model(input_ids=input_ids, use_cache=False)
    except Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return seen
