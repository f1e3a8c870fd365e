"""Mixed precision: weights, gradients and optimizers in float32, the products of a forward and backward pass in bfloat16.

A weight's own updates lose nothing, which they do in bfloat16 weights. On processors with units for bfloat16 a pass takes a half
to a third of its time. Rounded products make a figure another figure, so the precision is part of every identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def multiply_in_bfloat16(model: nn.Module) -> None:
    """Compute every pass through the model under autocast. What is computed from its outputs stays as it is.

    Logits and hidden states come in float32 again.
    """
    casting = _Casting()
    model.register_forward_pre_hook(casting.enter, with_kwargs=True)
    model.register_forward_hook(casting.leave, always_call=True)
    model.holdfast_casting = casting  # type: ignore[assignment]


@contextmanager
def exact(model: nn.Module) -> Iterator[None]:
    """Compute passes through the model in the precision of its weights while the block runs."""
    casting = getattr(model, "holdfast_casting", None)
    if casting is not None:
        casting.off = True
    try:
        yield
    finally:
        if casting is not None:
            casting.off = False


def multiplies_in_bfloat16(model: nn.Module) -> bool:
    """Whether a pass through the model has bfloat16 products now, though its logits come in float32."""
    casting = getattr(model, "holdfast_casting", None)
    return casting is not None and not casting.off


class _Casting:
    """Hooks that begin autocast before a model's pass and end it behind the pass, whether the pass succeeds or not."""

    def __init__(self) -> None:
        self.off = False
        self._open: list[Any] = []

    def enter(self, module: nn.Module, inputs: Any, named: Any) -> None:
        device = next(module.parameters()).device.type
        self._open.append(torch.autocast(device, torch.bfloat16, enabled=not self.off))
        self._open[-1].__enter__()

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self._open.pop().__exit__(None, None, None)
        if output is None or self.off:  # the pass failed
            return None
        for name in ("logits", "last_hidden_state"):
            if isinstance(state := output.get(name), torch.Tensor):
                output[name] = state.float()
        if states := output.get("hidden_states"):
            output["hidden_states"] = tuple(state.float() for state in states)
        return output
