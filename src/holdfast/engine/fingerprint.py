"""Whether a model's weights are still the same, bit for bit, told by sums instead of a copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from holdfast.engine.sharded import local, reshard

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the whole number of as many bits."""


class Fingerprint:
    """Sums over every weight and buffer, along its rows and along its columns, of the numbers' bits read as whole numbers.

    A single changed bit changes a sum, and a weight whose entries change places has other sums. It takes as long as a
    forward pass of a few tokens: the weights are read once or twice.
    """

    def __init__(self, model: nn.Module) -> None:
        reshard(model)
        with torch.no_grad():
            named = [*model.named_parameters(), *model.named_buffers()]
            self._names = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in named]
            self._sums = [torch.cat(list(_sums(local(tensor.detach())))) for _, tensor in named]
        self._sharded = any(isinstance(tensor, DTensor) for _, tensor in named)

    def matches(self, other: Fingerprint) -> bool:
        """Whether both were taken of equal weights; on every rank the same answer."""
        alike = self._names == other._names and all(
            mine.device == theirs.device and torch.equal(mine, theirs)
            for mine, theirs in zip(self._sums, other._sums, strict=True)
        )
        if not self._sharded:
            return alike
        everywhere = torch.tensor(int(alike), device=self._sums[0].device)
        dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        return bool(everywhere)


def _sums(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    bits = tensor.contiguous().view(_BITS[tensor.element_size()])
    if bits.dim() < 2:
        yield bits.reshape(-1).long()
        return
    matrix = bits.reshape(len(bits), -1)
    yield matrix.sum(0, dtype=torch.long)
    yield matrix.sum(1, dtype=torch.long)
