"""RepSelect: ascends the loss of hazardous text along its gradient, without the components that other text shares.

    theta' = theta after one pass of LoRA that learns the forget rows         brings out what an attacker would use
    G      = gradient of the LM loss of the forget rows at theta', for each map of each MLP
    G*     = (1 - U (1 - R) U^T) G (1 - V (1 - R) V^T)                       its k largest components damped, R = sigma_k / sigma
    W     <- W + rate * |W| / |G*| * G*                                       again and again, with the same G*

The source is arXiv 2606.17168, in the one-shot form (`repselect_simple.py` of its code: LoRA of rank 8 and alpha 8 learned by
SGD at 0.01, k 512, SGD at 0.05 on the sum of the batches' gradients, soft damping from both sides). The paper claims that the
largest components of a forget gradient are those that other text needs and that fine-tuning finds again, so that these
components cause both harm and recovery. Nothing is learned from retain rows. Deviations: the rate is the length of an update as
a share of the length of all weights that the update changes, so that a rate carries over between models; the source multiplies
the damped gradient. Every map of an MLP except routers is edited; the source edits the first map alone of each expert of a
mixture. The number of updates is fixed; the source stops at a loss of general text. A model that is split over devices gathers
the gradients one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core.ranges import check_settings
from holdfast.safeguards.base import Safeguard

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.anatomy import LinearMap
    from holdfast.engine.data import Batch, Data, Stream
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class RepSelect(Safeguard):
    """Ascends the loss of hazardous text along its gradient, without the components shared with other text."""

    outer_steps: int = 24
    """updates, each along the same matrices"""
    learning_rate: float = 0.03
    """length of an update, as a share of the length of all weights that the update changes"""
    components: int = 512
    """k, number of each gradient's largest components that are damped, down to the size of the k-th; at most all of them"""
    lora_rank: int = 8
    """rank of the LoRA that learns the forget rows first; its alpha is the same number"""
    lora_learning_rate: float = 0.01
    """learning rate of that LoRA's SGD; 0: no LoRA"""
    forget_batch_size: int = 32
    """hazardous rows in a batch, from forget and forget_heldout together; both passes read each row once"""
    retain_batch_size: int = 32
    """retain rows whose loss is reported after each update; these rows are not trained on"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=(
                "outer_steps",
                "learning_rate",
                "components",
                "lora_rank",
                "forget_batch_size",
                "retain_batch_size",
                "micro_batch",
            ),
            not_negative=("lora_learning_rate",),
        )

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        import torch

        from holdfast.engine.anatomy import mlp_maps
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        pooled = data.renamed(forget=("forget", "forget_heldout"))
        forget = pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed)
        damped = _Damped(mlp_maps(model))
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        run.track(damped=damped, forget=forget, retain=retain)
        model.train(False)
        if run.start == 0:
            gradients = self._gradient(model, damped.maps, forget, run.seed)
            damped.take(gradients, self.components, self.learning_rate, run.seed)

        def mean_loss(batch: Batch) -> float:
            loss = 0.0
            with torch.no_grad():
                for part in batch.split(self.micro_batch):
                    logits = predictions(model, part.input_ids)
                    loss += float(next_token_loss(logits, part.labels, part.label_count))
            return loss

        for _ in range(run.start, self.outer_steps):
            damped.add()
            yield {"forget loss": -mean_loss(next(forget)), "retain loss": mean_loss(next(retain))}

    def _gradient(self, model: PreTrainedModel, maps: list[LinearMap], forget: Stream, seed: int) -> list[torch.Tensor]:
        """The gradient of the forget rows' loss, summed over batches, where LoRA has learned them; the weights are put back."""
        import torch

        from holdfast.engine.low_rank import LowRankOptimizer
        from holdfast.engine.optimizers import make_optimizer
        from holdfast.engine.sharded import Snapshot, clear_gradients, trainable

        batches = math.ceil(len(forget.rows) / self.forget_batch_size)
        origin, weights = Snapshot(model), trainable(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            elicited = LowRankOptimizer(
                maps,
                self.lora_rank,
                self.lora_rank,
                lambda factors: make_optimizer("sgd", factors, self.lora_learning_rate, weight_decay=0.0),
            )
        for _ in range(batches if self.lora_learning_rate else 0):
            clear_gradients(weights)
            self._climb(model, forget)
            elicited.carry_gradients()
            elicited.step()
        clear_gradients(weights)
        for _ in range(batches):
            self._climb(model, forget)
        gradients = [
            torch.zeros_like(found.weight) if found.weight.grad is None else found.weight.grad.clone() for found in maps
        ]
        clear_gradients(weights)
        origin.restore()
        return gradients

    def _climb(self, model: PreTrainedModel, forget: Stream) -> None:
        """Add the gradient of the next rows' loss to the weights' gradients."""
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        for part in next(forget).split(self.micro_batch):
            logits = predictions(model, part.input_ids)
            next_token_loss(logits, part.labels, part.label_count).backward()  # type: ignore[no-untyped-call]


class _Damped:
    """What every update adds: one tensor a map, of the shape of its weight and sharded as the weight is."""

    def __init__(self, maps: list[LinearMap]) -> None:
        import torch

        from holdfast.engine.sharded import local

        self.maps = maps
        self._parts = [torch.zeros_like(local(found.weight.detach()), dtype=torch.float32) for found in maps]

    def take(self, gradients: list[torch.Tensor], components: int, rate: float, seed: int) -> None:
        """Damp the gradients, and scale them together to `rate` times the length of the weights."""
        import torch

        from holdfast.engine.sharded import local, part_of, whole

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for found, kept, gradient in zip(self.maps, self._parts, gradients, strict=True):
                gathered = whole(gradient).float()
                damped = torch.empty_like(gathered)
                for place, matrix in zip(found.each(damped), found.each(gathered), strict=True):
                    place.copy_(damp(matrix, components))
                kept.copy_(part_of(damped, found.weight))
            weights = _length([local(found.weight.detach()).float() for found in self.maps])
            if (length := _length(self._parts)) > 0:
                torch._foreach_mul_(self._parts, rate * weights / length)

    def add(self) -> None:
        """Add them to the weights."""
        from holdfast.engine.sharded import local

        for found, part in zip(self.maps, self._parts, strict=True):
            weight = local(found.weight.detach())
            weight.copy_(weight.float() + part)

    def state_dict(self) -> dict[str, Any]:
        from holdfast.engine.sharded import as_sharded

        return {"tensors": [as_sharded(part, found.weight) for found, part in zip(self.maps, self._parts, strict=True)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        from holdfast.engine.sharded import part_of

        for found, part, saved in zip(self.maps, self._parts, state["tensors"], strict=True):
            part.copy_(part_of(saved, found.weight))


def _length(parts: list[torch.Tensor]) -> float:
    """The Euclidean length of several tensors together, of which each rank may have parts."""
    from holdfast.engine.ranks import totals

    return math.sqrt(totals([sum(float(part.double().square().sum()) for part in parts)])[0])


_SPARE = 16


def damp(matrix: torch.Tensor, components: int) -> torch.Tensor:
    """Divide the largest components of a matrix by their size from both sides, in units of the smallest of them.

    A component of singular value s becomes one of r² / s, with r that of the last one. Directions are found by torch's
    randomised decomposition, which draws from its global generator.

    Args:
        matrix: outputs x inputs.
        components: how many; at most all of them.
    """
    import torch

    # A few more than are asked for make those that are asked for exact.
    found = torch.svd_lowrank(matrix, q=min(components + _SPARE, *matrix.shape))
    left, sizes, right = (part[..., :components] for part in found)
    if not float(sizes[0]) > 0:
        return matrix
    lost = 1 - sizes[-1] / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    matrix = matrix - (matrix @ right * lost) @ right.mT
    return matrix - left @ (lost[:, None] * (left.mT @ matrix))


PRESETS = {
    "rep-select": RepSelect(components=16),
    # Hundreds of millions of weights. None of six trials (`holdfast study real-full`) hid capitals and
    # kept ability. These settings left 64 % of them in sight, and took ability from 96 to 81 %.
    "rep-select-small": RepSelect(
        outer_steps=12, learning_rate=0.002, components=64, forget_batch_size=8, retain_batch_size=8
    ),
    # The source's constants but for the rate, which is ours. It was not run at this size.
    "rep-select-large": RepSelect(learning_rate=0.002, components=512, forget_batch_size=8, micro_batch=4),
}
