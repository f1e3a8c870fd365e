"""Adjacent linear maps: a change of basis in one cancels against the other, so weights move and the function stays.

Two places of a decoder layer have that freedom. Attention lies between the value and the output projection, mixes
positions and leaves each head's space alone: the basis is any invertible matrix per key-value head. A product with the gate,
unit by unit, lies between the up- and the down-projection of a gated MLP: the basis is a scale per unit, a matrix of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.mixed import exact
from holdfast.engine.sharded import local, reshard, rewrite, whole


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
            maps, head = _linear_children(part), getattr(part, "head_dim", None)
            if (
                {"v_proj", "o_proj"} <= maps.keys()
                and isinstance(head, int)
                and maps["v_proj"].out_features % head == 0
            ):
                pairs.append(Adjacent(maps["v_proj"], maps["o_proj"], head))
            if {"gate_proj", "up_proj", "down_proj"} <= maps.keys():
                pairs.append(Adjacent(maps["up_proj"], maps["down_proj"], 1))
    if not pairs:
        raise HoldfastError(
            f"the architecture {type(model).__name__} has no value and output projections and no gated MLP by name; "
            "this needs one with v_proj and o_proj, or with gate_proj, up_proj and down_proj"
        )
    return pairs


def fold_norms(model: PreTrainedModel) -> None:
    """Move the scales of the norms before attention and MLP into the linear maps that read them; norms become plain.

    Layers with other norms than these two keep theirs, since names do not tell what reads such norms. So do norms without a
    scale, and norms that other maps than those of Llama's layers read.
    """
    for layer in decoder_layers(model):
        norms = {name: part for name, part in layer.named_children() if "RMSNorm" in type(part).__name__}
        if norms.keys() != {"input_layernorm", "post_attention_layernorm"}:
            continue
        for part in layer.children():
            maps = _linear_children(part)
            for norm, readers in _READERS.items():
                if readers <= maps.keys() and hasattr(norms[norm], "weight"):
                    _fold(norms[norm], [maps[name] for name in sorted(readers)])


_READERS = {
    "input_layernorm": {"q_proj", "k_proj", "v_proj"},
    "post_attention_layernorm": {"gate_proj", "up_proj"},
}
"""Norms, and the maps that read them."""


def check_adjacent(model: PreTrainedModel, pairs: Sequence[Adjacent], input_ids: torch.Tensor) -> None:
    """Refuse pairs that are adjacent by name only: a gate, a norm or a difference of heads may lie between two maps.

    Each block's directions take each other's places, times powers of two. That rounds nothing, so logits that move tell of
    something between the maps, where a turn in half precision would hide that in its rounding. The weights are put back from
    copies, since float16 loses bits near zero.

    Args:
        model: the model that the pairs are of; left as it was.
        pairs: its adjacent maps by name.
        input_ids: a batch of tokens (B x T), on every rank the same.

    Raises:
        HoldfastError: the logits moved.
    """
    before = logits_of(model, input_ids)
    weights = [
        local(weight.detach()) for pair in pairs for part in (pair.first, pair.second) for weight in part.parameters()
    ]
    copies = [weight.clone() for weight in weights]
    for pair in pairs:
        pair.rebase(*_turn(pair))
    after = logits_of(model, input_ids)
    for weight, copy in zip(weights, copies, strict=True):
        weight.copy_(copy)
    check_function(model, before, after, MOVED if model.dtype == torch.float32 else 10 * MOVED)


def check_function(
    model: PreTrainedModel, before: torch.Tensor, after: torch.Tensor, tolerance: float | None = None
) -> None:
    """Refuse an edit that was to leave the function as it is, and did not.

    Args:
        model: the edited model.
        before: its logits before the edit (B x T x V).
        after: its logits on the same tokens now.
        tolerance: the root mean square of a move that is still rounding, in units of the logits' spread; None: that of a
            change of basis in the model's precision.

    Raises:
        HoldfastError: the logits moved by more.
    """
    if tolerance is None:
        tolerance = MOVED if model.dtype == torch.float32 else 100 * MOVED
    moved = float((after.float() - before.float()).square().mean().sqrt() / before.float().std())
    if not moved <= tolerance:
        raise HoldfastError(
            f"a change of basis must leave the function of a model as it is, and it moved the logits of this "
            f"{type(model).__name__} by {moved:.1g} times their spread; leave the change of basis out for this architecture"
        )


MOVED = 1e-3
"""The most that rounding moves logits in single precision, in units of their spread; it moves some 1e-6. A turn in half
precision moves 1e-2 of two layers, and more where experts change."""


def logits_of(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """The model's logits for a batch of tokens (B x T x V)."""
    with torch.no_grad(), exact(model):
        logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    reshard(model)
    return logits


def _turn(pair: Adjacent) -> tuple[torch.Tensor, torch.Tensor]:
    """A permutation of a block's directions times powers of two, and its inverse, each 1 x block x block, in double precision."""
    scale = 2.0 ** (torch.arange(pair.block, dtype=torch.float64, device=pair.first.weight.device) % 3 + 1)
    places = torch.arange(pair.block, device=scale.device).roll(1)
    basis = torch.diag(scale)[places][None]
    return basis, torch.diag(1 / scale)[:, places][None]


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


def _linear_children(part: nn.Module) -> dict[str, nn.Linear]:
    """The plain linear maps among the children of a module by name, without LoRA's wrapping."""
    children = {name: getattr(child, "base_layer", child) for name, child in part.named_children()}
    return {name: child for name, child in children.items() if isinstance(child, nn.Linear)}
