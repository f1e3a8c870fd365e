"""Activation checkpointing: layers keep what enters them, and compute the rest again in the backward pass.

The switch of transformers works in training mode alone, and attacks train in evaluation mode. So a layer's `forward` is wrapped
here, inside of all hooks: what enters and leaves a layer is seen once, and its gradient is whole. The same numbers come out,
dropout included, because the state of the random numbers is put back for the second computation.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from holdfast.engine.anatomy import decoder_layers


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only what enters the layers of a model between a forward and a backward pass.

    Raises:
        HoldfastError: the architecture has no list of layers.
    """
    for layer in decoder_layers(model):
        layer.forward = MethodType(_forward, layer)


def _forward(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
    plain = type(layer).forward
    if not torch.is_grad_enabled():
        return plain(layer, *inputs, **named)
    return checkpoint(plain, layer, *inputs, use_reentrant=False, **named)
