"""Float32 tensors in eight bits a value, with a scale for each block of 256 (arXiv 2110.02861), rounded at random.

To the nearest, a second moment that falls by a thousandth at every step never falls: the 8-bit optimizers of bitsandbytes and
torchao round so. In a block beside steady gradients, the second moment of a single large gradient then stands still or grows, and
its weight hardly moves any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from holdfast.engine.rounding import dithered

_BLOCK = 256
"""values that share a scale"""
_LOWEST = 2.0**-15
"""the least exponent; four bits of exponent end at 1"""


@dataclass(frozen=True)
class Packed:
    """A float32 tensor in eight bits a value."""

    codes: torch.Tensor
    scales: torch.Tensor
    """the greatest size of each block"""

    @staticmethod
    def of(values: torch.Tensor, signed: bool, generator: torch.Generator | None = None) -> Packed:
        """Round values at random to eight bits each. Unsigned values have a bit more, and none but zero becomes zero."""
        flat = values.reshape(-1)
        blocks = nn.functional.pad(flat, (0, -flat.numel() % _BLOCK)).view(-1, _BLOCK)
        sizes = blocks.abs() if signed else blocks
        scales = sizes.amax(1, keepdim=True)
        fraction, most = _form(signed)
        # Above zero the numbers lie as floats do; the shift by the lowest makes zero one of them, and their steps even near it.
        raised = (sizes * (most / scales.clamp(min=1e-38))).add_(_LOWEST)
        bits = raised.view(torch.int32).sub_(_bits(_LOWEST))
        codes = dithered(bits, 23 - fraction, generator).bitwise_right_shift_(23 - fraction)
        codes.clamp_(max=(16 << fraction) - 1)
        if signed:
            codes.add_(blocks.signbit(), alpha=128)
        else:
            codes = codes.maximum((blocks > 0).int())
        return Packed(codes.to(torch.uint8).view(-1)[: flat.numel()].clone(), scales[:, 0])

    def unpacked(self, signed: bool, shape: torch.Size) -> torch.Tensor:
        """The values in float32."""
        codes = nn.functional.pad(self.codes, (0, -self.codes.numel() % _BLOCK)).view(-1, _BLOCK).int()
        fraction, most = _form(signed)
        bits = (codes & 127 if signed else codes).bitwise_left_shift_(23 - fraction).add_(_bits(_LOWEST))
        values = bits.view(torch.float32).sub_(_LOWEST).mul_(self.scales[:, None] / most)
        if signed:  # the sign is a float's highest bit
            values.view(torch.int32).bitwise_or_((codes & 128).bitwise_left_shift_(24))
        return values.view(-1)[: self.codes.numel()].view(shape)


def _form(signed: bool) -> tuple[int, float]:
    """Bits of fraction beside four of exponent, and what the greatest value of a block becomes."""
    fraction = 3 if signed else 4
    return fraction, 2.0 - 2.0**-fraction - _LOWEST


def _bits(value: float) -> int:
    return int(torch.tensor(value).view(torch.int32))
