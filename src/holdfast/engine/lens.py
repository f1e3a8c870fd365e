"""Logits of hidden states below the last: what the model's own end makes of them, its scale, softcap and bias included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder, final_norm
from holdfast.engine.predictions import Deferred, Logits, deferred
from holdfast.engine.stream import hidden_states


def lens(
    model: PreTrainedModel, input_ids: torch.Tensor
) -> tuple[Logits, tuple[torch.Tensor, ...], Callable[[torch.Tensor], Logits]]:
    """Read a batch once. Many logits are deferred, as those of `predictions`.

    Returns:
        the logits (B x T x V), the residual stream as `hidden_states` gives it, and a function from one of its states but the
        last to the logits that the model would give if that state were its last: the final norm and all that the
        architecture does after it.

    Raises:
        HoldfastError: the architecture has no part that ends in the last hidden state.
    """
    body, norm, outputs = decoder(model), final_norm(model), list[Any]()
    hook = body.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        logits, hidden = hidden_states(model, input_ids)
    finally:
        hook.remove()
    if body is model or not outputs or getattr(outputs[-1], "last_hidden_state", None) is None:
        raise HoldfastError(
            f"the architecture {type(model).__name__} has no part that ends in the last hidden state, which this needs"
        )

    def ended(normed: torch.Tensor) -> Any:
        return type(outputs[-1])(**{**outputs[-1], "last_hidden_state": normed})

    def end(state: torch.Tensor) -> Logits:
        if isinstance(logits, Deferred):
            return deferred(model, body, ended(norm(state)))
        # The model's own end runs on this state, in place of what its body gives. The norm belongs to that pass: only there is
        # the weight of a model that is split over devices whole.
        body.forward = lambda *args, **kwargs: ended(norm(state))
        try:
            found: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
        finally:
            del body.forward
        return found

    return logits, hidden, end
