"""Weights and gradients as local shards: the same code on one processor, one GPU, or FSDP2 on many."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


class Snapshot:
    """A copy of a model's trainable weights that can be put back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._saved = [local(p.detach()).clone() for p in self._shards()]

    def restore(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_([local(p.detach()) for p in self._shards()], self._saved)

    def _shards(self) -> list[nn.Parameter]:
        # After a forward without a backward FSDP2's root stays gathered, and its parameters are stale copies.
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return trainable(self._model)


class GradientSum:
    """A weighted sum of gradients, taken at different weights of one model."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = trainable(model)
        self._sum: list[torch.Tensor] | None = None

    def take(self, weight: float = 1.0) -> None:
        """Add `weight` times the gradients that the model holds now, and clear them."""
        with torch.no_grad():
            held = [local(p.grad) if p.grad is not None else torch.zeros_like(local(p)) for p in self._parameters]
            if self._sum is None:
                self._sum = [torch.zeros_like(gradient) for gradient in held]
            torch._foreach_add_(self._sum, held, alpha=weight)
            self.clear()

    def clear(self) -> None:
        clear_gradients(self._parameters)

    def give(self) -> None:
        """Make the sum the model's gradients, and start anew from nothing."""
        assert self._sum is not None
        for parameter, total in zip(self._parameters, self._sum, strict=True):
            if isinstance(parameter, DTensor):
                parameter.grad = DTensor.from_local(
                    total, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
                )
            else:
                parameter.grad = total
        self._sum = None
