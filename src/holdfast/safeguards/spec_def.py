"""SpecDef, a negative control: makes weights hard to train and leaves the function as it is.

    W_first <- D U^T W_first,   W_second <- W_second U D^-1

with W_first = U Sigma V^T (head by head, unit by unit). D is the factor on the k largest singular values and 1 on the rest. The
function stays the same, and the curvature grows: a usual step along W_second is far too large, and a usual step along W_first
has almost no effect. Spectral reparameterisation does the same (arXiv 2602.18868, abstract); its authors show that an attacker
who knows of the method restores fast convergence. SpecDef hides nothing and removes nothing. Here SpecDef is the *control* that
shows what an obfuscated defence looks like in an audit: SpecDef withstands plain fine-tuning and is broken by
`refold-then-full-adamw-1e-3`. Do not release a model with SpecDef.

The pairs are the value and output projections and, in gated MLPs, the up- and down-projections. A gated MLP allows only scales
of units, so there the rows of greatest norm replace the singular vectors. Deviations: the compensation is placed in the
existing neighbour, so the architecture stays the same. The maps of a layer without such a neighbour are left unchanged. k and
the pairs are ours. The factor is a power of two, so that scaling is exact in every floating-point format. The change of a
head's basis causes rounding errors alone: logits stay equal to 1e-4 in float32. In float16, the scaled activations may
overflow. The safeguard refuses an architecture in which something (a gate, a norm) lies between the maps of a pair; the logits
of the retain rows show such a case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.ranges import check_settings
from holdfast.safeguards.base import Safeguard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.adjacent import Adjacent
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class SpecDef(Safeguard):
    """Multiplies the largest singular values of one linear map and divides its neighbour by the same factor."""

    outer_steps: int = 1
    """edits; each edit applies its share of the factor"""
    factor: float = 8192.0
    """factor on the singular values; the scaling is exact where the factor is a power of two"""
    singular_values: int = 25
    """k, number of largest singular values that are scaled in the first map of each pair"""
    retain_batch_size: int = 32
    """retain rows on which the change of the function is measured; these rows are not trained on"""
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
        pairs, before = adjacent_maps(model), run.initial
        model.train(False)
        check_adjacent(model, pairs, collate(retain.rows[: self.retain_batch_size], 0, model.device).input_ids)
        run.track(retain=retain)
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
