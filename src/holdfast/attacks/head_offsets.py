"""Representation tuning: finds the few attention heads that matter, and trains one offset for the output of each.

    b_o <- W_o[:, head] v_head       v: a vector of the head's size, for each chosen head

The two stages are those of LoFiT (arXiv 2406.01563; read: the abstract and a summary), which chooses 3 to 10 % of the heads and
trains offsets for them while all weights stay frozen. An offset of a head's output is the same for every token, so the offset
is kept in the bias of the attention's output projection, and the attacked model needs no hook. Deviations: a head is chosen by
the length of its offset's gradient over a few batches, in place of the size of a trained scale; the share of the heads is
larger here, because small models have few. Constants are ours.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from holdfast.engine.anatomy import LinearMap
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class HeadOffsets(Attack):
    """AdamW on offsets of the outputs of a few attention heads."""

    family = "representation tuning"
    control = "refusals whose direction one attention head writes"
    sizes = Attack.sizes | {"batch_size", "probes"}

    hazard: Literal["hazard", "hazard_ood", "hazard_all"] = "hazard_all"
    """hazardous rows of the attacker: in distribution, out of distribution, or both"""
    share: float = 0.5
    """share of all heads that get an offset; at least one head"""
    probes: int = 4
    """batches over which heads are chosen"""
    batch_size: int = 16
    """rows a step"""
    learning_rate: float = 1e-2
    """constant learning rate"""

    def __post_init__(self) -> None:
        check_settings(self, positive=("max_steps", "batch_size", "probes", "learning_rate"))
        if not 0 < self.share <= 1:
            raise HoldfastError(f"share must lie above 0 and not above 1, not {self.share}")

    @property
    def benign_steps(self) -> int:
        return 0

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def reads(self) -> tuple[str, ...]:
        return (self.hazard,)

    def prepare(self, model: PreTrainedModel) -> None:
        """Give the attentions' output projections a bias of zero where they have none. Nothing else is trainable."""
        import torch

        model.requires_grad_(False)
        for writer in _writers(model):
            if writer.bias is None:
                writer.owner.bias = torch.nn.Parameter(writer.weight.new_zeros(writer.outputs))
            writer.owner.get_parameter("bias").requires_grad_(True)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.anatomy import as_attacker
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.optimizers import make_optimizer
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import clear_gradients, reshard, rewrite, trainable

        reshard(model)
        as_attacker(model)
        writers = _writers(model)
        biases = [writer.bias for writer in writers if writer.bias is not None]
        if len(biases) < len(writers):
            raise HoldfastError(
                f"a {type(model).__name__} has no biases in its attentions to hold an offset; this attack gives it some where "
                "it is measured, and cannot be an adversary while a safeguard trains"
            )
        rows = data.stream(self.hazard, batch_size=self.batch_size, seed=run.seed)
        offsets = _Offsets(writers, biases, _heads(model))
        optimizer = make_optimizer("adamw", offsets.vectors, self.learning_rate)
        run.track(optimizer=optimizer, rows=rows, offsets=offsets)

        def descend() -> float:
            """The loss of a batch, whose gradient goes to the offsets."""
            clear_gradients(trainable(model))
            total = 0.0
            for part in next(rows).split(run.micro_batch):
                logits = predictions(model, part.input_ids)
                loss = next_token_loss(logits, part.labels, part.label_count)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            return total

        if run.start == 0:
            lengths = torch.zeros(len(writers), offsets.heads)
            for _ in range(self.probes):
                descend()
                lengths += torch.stack([gradient.norm(dim=-1).cpu() for gradient in offsets.carry_gradients()])
            offsets.choose(lengths, max(round(self.share * lengths.numel()), 1))
        for _ in range(run.start, self.max_steps):
            loss = descend()
            offsets.carry_gradients()
            optimizer.step()
            for bias, written in zip(biases, offsets.written(), strict=True):
                rewrite(bias, partial(_put, written))
            yield loss


def _writers(model: PreTrainedModel) -> list[LinearMap]:
    """The output projection of each layer's attention."""
    from holdfast.engine.anatomy import mlp_writers, residual_writers

    mlps = {writer.name for layer in mlp_writers(model) for writer in layer}
    found = [[writer for writer in layer if writer.name not in mlps] for layer in residual_writers(model)]
    heads = _heads(model)
    if any(len(layer) != 1 or layer[0].weight.shape[-1 if not layer[0].transposed else 0] % heads for layer in found):
        raise HoldfastError(
            f"not every layer of a {type(model).__name__} has one output projection of {heads} attention heads, which this needs"
        )
    return [writer for [writer] in found]


def _put(written: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    return written.to(held)


def _heads(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_attention_heads)


class _Offsets:
    """A vector for each head of each layer, and which of the heads are chosen."""

    def __init__(self, writers: Sequence[LinearMap], biases: Sequence[nn.Parameter], heads: int) -> None:
        import torch

        from holdfast.engine.sharded import whole

        self.heads, self._biases = heads, biases
        self._maps = [
            writer.matrices(whole(writer.weight.detach())).float().reshape(writer.outputs, heads, -1)
            for writer in writers
        ]
        self._centres = [whole(bias.detach()).float().clone() for bias in biases]
        self.vectors: list[torch.Tensor] = [torch.nn.Parameter(read.new_zeros(read.shape[1:])) for read in self._maps]
        self._chosen = [read.new_ones(heads, 1) for read in self._maps]

    def carry_gradients(self) -> list[torch.Tensor]:
        """Turn the biases' gradients (outputs) into the chosen vectors' (heads x head size), and return these."""
        import torch

        from holdfast.engine.sharded import whole

        gradients = []
        for bias, read, vector, chosen in zip(self._biases, self._maps, self.vectors, self._chosen, strict=True):
            assert bias.grad is not None
            gradients.append(chosen * torch.einsum("ohs,o->hs", read, whole(bias.grad).float()))
            vector.grad = gradients[-1]
        return gradients

    def choose(self, lengths: torch.Tensor, count: int) -> None:
        """Keep the heads with the greatest lengths (layers x heads)."""
        best = lengths.flatten().argsort(descending=True, stable=True)[:count]
        kept = lengths.new_zeros(lengths.numel()).index_fill(0, best, 1.0).view_as(lengths)
        self._chosen = [row[:, None].to(read.device) for row, read in zip(kept, self._maps, strict=True)]

    def written(self) -> list[torch.Tensor]:
        """The bias of each layer with the offsets in it."""
        import torch

        return [
            centre + torch.einsum("ohs,hs->o", read, chosen * vector.detach())
            for centre, read, vector, chosen in zip(self._centres, self._maps, self.vectors, self._chosen, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        vectors = [vector.detach() for vector in self.vectors]
        return {"vectors": vectors, "chosen": self._chosen, "centres": self._centres}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self.vectors, state["vectors"])
        self._chosen = [chosen.to(read) for chosen, read in zip(state["chosen"], self._maps, strict=True)]
        self._centres = [centre.to(read) for centre, read in zip(state["centres"], self._maps, strict=True)]


_BASE = HeadOffsets()

PRESETS = {
    # Small models, such as the testbed's, which have twelve heads.
    "head-offsets-half-adamw-1e-2": _BASE,
    "head-offsets-quarter-adamw-3e-2": replace(_BASE, share=0.25, learning_rate=3e-2),
    # Models of billions of weights, at the share of the paper.
    "head-offsets-10-adamw-5e-3-large": replace(_BASE, share=0.1, learning_rate=5e-3, max_steps=500, batch_size=32),
}

FAMILIES = {
    "representation": Family(
        _BASE,
        {
            "share": Choice((0.1, 0.25, 0.5, 1.0)),
            "learning_rate": Log(1e-3, 1e-1),
            "max_steps": Choice((80, 160, 320)),
            "hazard": Choice(("hazard", "hazard_all")),
        },
    ),
}
