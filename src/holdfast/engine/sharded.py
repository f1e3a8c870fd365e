"""Weights and gradients as local shards: the same code on one processor, one GPU, or FSDP2 on many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from holdfast.engine.heap import give_back
from holdfast.engine.rounding import rounded, shift, wide


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, gathered on every rank where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, as `like` is sharded and where it is; the tensor may be whole, and the same on every rank."""
    if isinstance(value, DTensor):
        return value.to_local()
    if not isinstance(like, DTensor):
        return value.to(like.device)
    [placement], mesh = like.placements, like.device_mesh
    if isinstance(placement, Shard):
        rows, rank = value.shape[placement.dim], mesh.get_local_rank()
        size, offset = placement.local_shard_size_and_offset(rows, mesh.size(), rank)
        value = value.narrow(placement.dim, offset, size).clone()  # and not the whole with it
    return value.to(like.device)


def assign(target: torch.Tensor, value: torch.Tensor) -> None:
    """Put a whole tensor that is the same on every rank into a tensor that may be sharded."""
    with torch.no_grad():
        local(target).copy_(part_of(value, target))


def as_sharded(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor of which this rank has `part`, sharded as `like` is; the part itself where `like` is not."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def is_split(model: nn.Module) -> bool:
    """Whether a model's weights lie in parts on several ranks."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def reshard(model: nn.Module) -> None:
    """Give up gathered weights: after a forward without a backward FSDP2's root stays gathered, and its parameters are stale."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def rewrite(weight: nn.Parameter, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put `change(weight)` in a weight's place, in float32; every rank gathers the whole of a sharded weight for this.

    What a bfloat16 weight gets is rounded at random, so that small changes are not lost.
    """
    with torch.no_grad():
        changed = rounded(change(whole(weight).detach().float()), weight.dtype)
        if isinstance(weight, DTensor):
            changed = distribute_tensor(changed, weight.device_mesh, weight.placements)
        local(weight.detach()).copy_(local(changed))


def clear_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Let the next gradients begin from nothing, and add up in float32 whatever the weights are."""
    for parameter in parameters:
        parameter.grad = None
        if wide(parameter.dtype) != parameter.dtype:
            parameter.grad_dtype = wide(parameter.dtype)


def expect(passes: int, parameters: Iterable[nn.Parameter]) -> None:
    """Say how many backward passes add to cleared gradients: that of one has the type of its weight, half of float32's memory."""
    if passes == 1:
        for parameter in parameters:
            if wide(parameter.dtype) != parameter.dtype:
                parameter.grad_dtype = None


def placed(model: nn.Module, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """This rank's parts of tensors like a model's trainable weights, as the tensors that they are parts of; so they are saved."""
    return [as_sharded(part, weight.detach()) for part, weight in zip(tensors, trainable(model), strict=True)]


def parts(model: nn.Module, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """This rank's parts of tensors like a model's trainable weights, which may be whole, as read from a saved state."""
    return [part_of(value, weight.detach()) for value, weight in zip(tensors, trainable(model), strict=True)]


def gradients_of(loss: torch.Tensor, weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """This rank's parts of the gradient of a loss that is the same on every rank; the weights' own gradients stay."""
    if not any(isinstance(weight, DTensor) for weight in weights):
        return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
    before = [weight.grad for weight in weights]
    clear_gradients(weights)
    loss.backward()  # type: ignore[no-untyped-call]  # FSDP2 gathers and reduces in a whole backward pass alone
    found = [torch.zeros_like(local(w.detach())) if w.grad is None else local(w.grad) for w in weights]
    for weight, gradient in zip(weights, before, strict=True):
        weight.grad = gradient
    return found


class Snapshot:
    """A copy of a model's trainable weights that can be put back; the copy is on `device`, by default that of the weights."""

    def __init__(self, model: nn.Module, device: str | None = None) -> None:
        self._model = model
        self._saved = [local(p.detach()).to(device or p.device, copy=True) for p in self._shards()]

    def take(self) -> None:
        """Copy the weights as they are now over the earlier copy."""
        with torch.no_grad():
            for saved, weight in zip(self._saved, self._shards(), strict=True):
                saved.copy_(local(weight.detach()))

    def restore(self) -> None:
        with torch.no_grad():
            for weight, saved in zip(self._shards(), self._saved, strict=True):
                local(weight.detach()).copy_(saved)
        give_back()

    def difference(self) -> list[torch.Tensor]:
        """How far the weights have moved since the copy; sharded as they are, and on the device of the copy."""
        with torch.no_grad():
            pairs = ((local(p.detach()), saved) for p, saved in zip(self._shards(), self._saved, strict=True))
            return placed(self._model, [(now - then.to(now.device)).to(then.device) for now, then in pairs])

    def state_dict(self) -> dict[str, Any]:
        return {"saved": placed(self._model, self._saved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch._foreach_copy_(self._saved, parts(self._model, state["saved"]))

    def _shards(self) -> list[nn.Parameter]:
        reshard(self._model)
        return trainable(self._model)


class GradientSum:
    """A weighted sum of gradients, taken at different weights of one model; in float32 where the weights are bfloat16.

    The sum is on `device`, by default that of the gradients, and a term is added where the gradients are.
    """

    def __init__(self, model: nn.Module, device: str | None = None) -> None:
        self._parameters, self._device = trainable(model), device
        self._sum: list[torch.Tensor] | None = None

    def take(self, weight: float = 1.0, *, keep: bool = False) -> None:
        """Add `weight` times the gradients that the model holds now, and clear them unless `keep` is set."""
        with torch.no_grad():
            gradients = [local(p.grad) if p.grad is not None else torch.zeros_like(local(p)) for p in self._parameters]
            if self._sum is None:
                self._sum = [
                    torch.zeros_like(gradient, dtype=wide(gradient.dtype), device=self._device or gradient.device)
                    for gradient in gradients
                ]
            if self._device is None:
                torch._foreach_add_(self._sum, gradients, alpha=weight)
            else:
                for total, gradient in zip(self._sum, gradients, strict=True):
                    here = total.to(gradient.device)
                    torch._foreach_add_([here], [gradient], alpha=weight)
                    total.copy_(here)
        if not keep:
            self.clear()

    def clear(self) -> None:
        clear_gradients(self._parameters)

    def expect(self, passes: int) -> None:
        """Say how many backward passes the next term takes."""
        expect(passes, self._parameters)

    def give(self) -> None:
        """Make the sum the model's gradients, and restart from nothing."""
        assert self._sum is not None
        for parameter, total in zip(self._parameters, self._sum, strict=True):
            if parameter.grad_dtype not in (None, total.dtype):
                parameter.grad_dtype = None  # any
            parameter.grad = as_sharded(total.to(local(parameter.detach()).device), parameter)
        self._sum = None


def inner_product(
    parameters: Iterable[nn.Parameter], left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]
) -> float:
    """The inner product of two lists of shards, such as gradients, over all of the parameters that they belong to."""
    terms = [(a.float() * b.float()).sum() for a, b in zip(left, right, strict=True)]
    total = torch.stack(terms).sum()
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        dist.all_reduce(total)
    return float(total)


@contextmanager
def displaced(model: nn.Module, length: float) -> Iterator[None]:
    """Move the weights by `length` along the model's gradients, clear the gradients, and put the weights back at the end.

    The direction has norm 1 over all weights, on all ranks together. A negative length goes downhill.
    """
    origin, parameters = Snapshot(model), trainable(model)
    with torch.no_grad():
        gradients = [local(p.grad) if p.grad is not None else torch.zeros_like(local(p)) for p in parameters]
        square = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum()
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            dist.all_reduce(square)
        # At a point without slope there is no direction: the weights stay.
        scale = length / square.sqrt().clamp(min=1e-12)
        shift([local(p.detach()) for p in parameters], [scale * gradient for gradient in gradients])
    clear_gradients(parameters)
    yield
    origin.restore()
