"""SpecDef, a negative control: makes weights hard to train and leaves the function as it is.

    W_first <- D U^T W_first,   W_second <- W_second U D^-1

with W_first = U Sigma V^T (head by head, unit by unit) and D the factor on its k largest singular values, 1 on the rest.
The function stays, and the curvature grows: a usual step along W_second is a leap, one along W_first is none. That is what
spectral reparameterisation does (arXiv 2602.18868, abstract), whose authors show that an attacker who knows of it restores
fast convergence. It hides nothing and removes nothing; here it is the *control* that shows what an obfuscated defence looks
like in an audit: it stands against plain fine-tuning and falls to `refold-then-full-adamw-1e-3`. Do not release with it.

The pairs are the value and output projections and, in gated MLPs, the up- and down-projections, where only scales of units
pass; rows of greatest norm stand for singular vectors there. Deviations: the compensation lies in the neighbour that is there
already, so the architecture stays; a layer's maps that have no such neighbour are left alone; k and the pairs are ours. The
factor is a power of two, so that scaling is exact in every floating-point format; turning a head's basis costs rounding
errors alone: logits stay equal to 1e-4 in float32. In float16 the scaled activations may overflow. An architecture in which
something lies between the maps of a pair (a gate, a norm) is refused: the logits of the retain rows tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.parts.objective import check_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.adjacent import Adjacent
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class SpecDef(Safeguard):
    """Multiplies the largest singular values of one linear map and divides its neighbour by as much."""

    outer_steps: int = 1
    """edits, each of which takes its share of the factor"""
    factor: float = 8192.0
    """what the singular values are multiplied with; exact where it is a power of two"""
    singular_values: int = 25
    """k, how many of each pair's first map, the largest ones"""
    retain_batch_size: int = 32
    """retain rows on which the change of the function is measured; nothing is learned from them"""
    micro_batch: int | None = None
    """rows that go through the model at once; None: the whole batch"""

    def __post_init__(self) -> None:
        names = ("outer_steps", "factor", "singular_values", "retain_batch_size", "micro_batch")
        check_settings(self, positive=names)

    @property
    def trains(self) -> bool:
        return False

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        import torch

        from holdfast.engine.adjacent import adjacent_maps, check_adjacent, check_function
        from holdfast.engine.data import collate
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.sharded import reshard

        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed)
        run.track(retain=retain)
        pairs, before = adjacent_maps(model), run.initial
        model.train(False)
        check_adjacent(model, pairs, collate(retain.rows[: self.retain_batch_size], 0, model.device).input_ids)
        for _ in range(run.start, self.outer_steps):
            reshard(model)
            for pair in pairs:
                self._edit(pair)
            change = loss = 0.0
            with torch.no_grad():
                for part in next(retain).split(self.micro_batch):
                    logits, old = (
                        network(input_ids=part.input_ids, use_cache=False).logits for network in (model, before)
                    )
                    check_function(model, old, logits)
                    change = max(change, float((logits - old).abs().max()))
                    loss += float(next_token_loss(logits, part.labels, part.label_count))
            yield {"function change": change, "retain loss": loss}

    def _edit(self, pair: Adjacent) -> None:
        import torch

        written = pair.written()
        squares, vectors = torch.linalg.eigh(written @ written.mT)
        scale = torch.ones_like(squares)
        largest = squares.flatten().topk(min(self.singular_values, squares.numel())).indices
        scale.view(-1)[largest] = self.factor ** (1 / self.outer_steps)
        pair.rebase(scale[..., None] * vectors.mT, vectors / scale[..., None, :])


PRESETS = {"spec-def": SpecDef()}
