"""Rounding at random, by which small changes of bfloat16 weights are kept (arXiv 2010.06192).

Around 0.02 the numbers of bfloat16 lie 1.2e-4 apart. An update of 2e-6 that is rounded to the nearest of them is lost, at every
step again. Rounded to one of the two neighbours, to each with the right probability, the expected weight is the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """A type in which sums and small steps are whole: float32 beside bfloat16, else the type itself."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def rounded(values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator | None = None) -> torch.Tensor:
    """Values in another type; in bfloat16 rounded at random to one of the two neighbours, right in expectation.

    A value that bfloat16 has stays as it is.

    Args:
        values: any shape.
        dtype: of the result.
        generator: of the random bits; None: torch's global one.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype)
    bits = values.float().contiguous().view(torch.int32)
    return dithered(bits, 16, generator).bitwise_and_(-(1 << 16)).view(torch.float32).to(dtype)


def shift(weights: Sequence[torch.Tensor], changes: Sequence[torch.Tensor]) -> None:
    """Add a change to each weight in place; a bfloat16 weight is rounded at random, so that small changes are not lost."""
    with torch.no_grad():
        if all(weight.dtype != torch.bfloat16 for weight in weights):
            torch._foreach_add_(list(weights), list(changes))
            return
        for weight, change in zip(weights, changes, strict=True):
            weight.copy_(rounded(weight.float() + change, weight.dtype))


def dithered(bits: torch.Tensor, low: int, generator: torch.Generator | None) -> torch.Tensor:
    """Add random bits below bit `low`: what carries over rounds up with the right probability."""
    # Drawn as wide numbers and cut: several times as fast as as many narrow ones.
    drawn = torch.empty(-(-bits.numel() // 2), dtype=torch.int64, device=bits.device).random_(generator=generator)
    noise = drawn.view(torch.int32)[: bits.numel()].bitwise_and_((1 << low) - 1)
    return noise.view(bits.shape).add_(bits)
