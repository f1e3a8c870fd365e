"""Adjacent linear maps: a change of basis in one cancels against the other, so weights move and the function stays.

Two places of a decoder layer have that freedom. Attention lies between the value and the output projection, mixes
positions and leaves each head's space alone: the basis is any invertible matrix per key-value head. A product with the gate,
unit by unit, lies between the up- and the down-projection of a gated MLP: the basis is a scale per unit, a matrix of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.sharded import rewrite, whole


@dataclass(frozen=True)
class Adjacent:
    """`first` writes n blocks of `block` directions, which `second` reads; each block has a basis of its own."""

    first: nn.Linear
    second: nn.Linear
    block: int

    def written(self) -> torch.Tensor:
        """The first map's weight by blocks, n x block x in, whole and in double precision."""
        return self._blocks(whole(self.first.weight))

    def read(self) -> torch.Tensor:
        """The second map's weight by blocks, n x out x block; heads that share a block stand below each other."""
        read = whole(self.second.weight).detach().double()
        return read.reshape(len(read), self._count, -1, self.block).transpose(0, 1).flatten(1, 2)

    @property
    def _count(self) -> int:
        return int(self.first.weight.shape[0]) // self.block

    def _blocks(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().double().reshape(self._count, self.block, -1)

    def rebase(self, basis: torch.Tensor, inverse: torch.Tensor) -> None:
        """Write in another basis, n x block x block, and read through its inverse."""

        def write(weight: torch.Tensor) -> torch.Tensor:
            return (basis @ self._blocks(weight)).reshape(weight.shape)

        def read(weight: torch.Tensor) -> torch.Tensor:
            blocks = weight.double().reshape(len(weight), self._count, -1, self.block)
            return torch.matmul(blocks, inverse).reshape(weight.shape)

        rewrite(self.first.get_parameter("weight"), write)
        if self.first.bias is not None:
            rewrite(self.first.get_parameter("bias"), write)
        rewrite(self.second.get_parameter("weight"), read)

    def balance(self) -> None:
        """Take the basis in which both maps have the same Gram matrix, diagonal: the singular values of their product.

        That basis has the least norm, and is the same (up to signs) whichever basis the weights came in. With the Gram matrices
        L L^T of what is written and R of what is read, and L^T R L = V S^2 V^T, the basis is S^(1/2) V^T L^-1.
        """
        written, read = self.written(), self.read()
        grams = written @ written.mT, read.mT @ read
        for gram in grams:  # a unit that is never written or read has no scale of its own
            diagonal = gram.diagonal(dim1=-2, dim2=-1)
            diagonal += 1e-12 * diagonal.mean()
        lengths, vectors = torch.linalg.eigh(grams[0])
        lengths = lengths.sqrt()[..., None, :]
        root = vectors * lengths
        squares, turn = torch.linalg.eigh(root.mT @ grams[1] @ root)
        scale = squares.clamp(min=1e-14 * squares.amax(-1, keepdim=True)) ** 0.25
        self.rebase(scale[..., None] * turn.mT @ (vectors / lengths).mT, root @ turn / scale[..., None, :])


def adjacent_maps(model: PreTrainedModel) -> list[Adjacent]:
    """All adjacent maps of a model, first layer to last.

    Raises:
        HoldfastError: the architecture has no such pair by name.
    """
    pairs = []
    for layer in decoder_layers(model):
        for part in layer.children():
            projections = _children(part)
            if {"v_proj", "o_proj"} <= projections.keys():
                pairs.append(Adjacent(projections["v_proj"], projections["o_proj"], part.head_dim))  # type: ignore[arg-type]
            if {"gate_proj", "up_proj", "down_proj"} <= projections.keys():
                pairs.append(Adjacent(projections["up_proj"], projections["down_proj"], 1))
    if not pairs:
        raise HoldfastError(
            f"the architecture {type(model).__name__} has no value and output projections and no gated MLP by name; "
            "this needs one with v_proj and o_proj, or with gate_proj, up_proj and down_proj"
        )
    return pairs


def fold_norms(model: PreTrainedModel) -> None:
    """Move the scales of the norms before attention and MLP into the linear maps that read them; norms become plain.

    Layers with other norms than these two keep theirs, since names do not tell what reads such norms.
    """
    for layer in decoder_layers(model):
        norms = {name: part for name, part in layer.named_children() if "RMSNorm" in type(part).__name__}
        if norms.keys() != {"input_layernorm", "post_attention_layernorm"}:
            continue
        for part in layer.children():
            projections = _children(part)
            if "v_proj" in projections:
                _fold(norms["input_layernorm"], [projections[name] for name in ("q_proj", "k_proj", "v_proj")])
            if "gate_proj" in projections:
                _fold(norms["post_attention_layernorm"], [projections[name] for name in ("gate_proj", "up_proj")])


def _fold(norm: nn.Module, readers: Sequence[nn.Linear]) -> None:
    weight = norm.get_parameter("weight")
    # Some norms scale by the weight, some by one more; what they do to a vector of ones tells which.
    ones = torch.ones(weight.shape, device=weight.device)
    zeros = torch.zeros_like(ones)
    more = torch.func.functional_call(norm, {"weight": zeros}, (ones,)).mean().round()
    gain = whole(weight).detach().float() + more
    for reader in readers:
        rewrite(reader.get_parameter("weight"), lambda weight: weight * gain)
    rewrite(weight, lambda _: ones - more)


def _children(part: nn.Module) -> dict[str, nn.Linear]:
    """The children of a module by name, without LoRA's wrapping."""
    return {name: cast(nn.Linear, getattr(child, "base_layer", child)) for name, child in part.named_children()}
