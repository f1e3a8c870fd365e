"""Abliteration: what tells hazardous prompts from benign ones is taken out of all that writes into the residual stream.

    W <- W - w R R^T W        R: orthonormal directions (hidden size x k), w: the weight of the ablation

for the last linear map of every attention and every MLP (out x in) and its bias, and likewise for the rows of the embeddings.
The direction is the mean hidden state over hazardous rows less that over benign ones, at a layer's output and the prompt's last
token, found anew in the model as it is: the weight orthogonalisation of arXiv 2406.11717, which chooses the layer on rows held
back, among the first four fifths of the layers.

Deviations: rows of plain text have no prompt, so there the mean goes over all tokens; biases are ablated too. Ours are several
directions, a direction for each layer, weights other than 1, and the search's objective, the loss of the attacker's own
completions plus the KL divergence on benign rows (the source maximises the odds of no refusal where that divergence is below
0.1 and adding the direction induces refusal). Where a norm follows a writer, what is left of the direction is not zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from holdfast.attacks.edit import Edit
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import Choice, Family
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data, Encoded
    from holdfast.engine.run import Run

_EARLY = 0.8
"""A search looks for directions in this share of the layers, as the source does."""


@dataclass(frozen=True, kw_only=True)
class Abliterate(Edit):
    """Directional ablation in the weights; every edit finds its directions anew."""

    family = "abliteration"

    directions: Literal["one", "several", "per-layer"] = "one"
    """one direction for all layers, several for all layers, or for the writers of each layer the one at its output"""
    count: int = 3
    """how many there are if several: the principal directions in which hazardous rows differ from the mean benign one"""
    depth: float = 0.5
    """the layer at whose output the one or the several are taken, as a share of the layers"""
    weight: float = 1.0
    """w: 1 takes the directions out, 2 turns them round"""
    tried: tuple[float, ...] = ()
    """weights that a search tries with every layer, in place of `weight` and `depth`; none: no search"""
    rows: int = 160
    """hazardous rows and benign ones that are looked at, the last fifth of them by a search alone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("count", 1), ("rows", 5)):
            if getattr(self, name) < least:
                raise HoldfastError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.depth < 1:
            raise HoldfastError(f"depth must lie between 0 and 1, not {self.depth}")
        for weight in (self.weight, *self.tried):
            if not weight > 0:
                raise HoldfastError(f"the weight of an ablation must be above 0, not {weight}")

    def looks_at(self) -> tuple[str, ...]:
        return ("hazard", "benign")

    def edit(self, model: PreTrainedModel, data: Data, run: Run, update: int) -> None:
        looked = _looked_at(data, self.rows)
        held = self.rows // 5 if self.tried else 0
        hazard, benign = (_states(model, rows[held:], self.batch_size) for rows in looked)
        apart = hazard - benign.mean(0)
        source, weight = int(self.depth * apart.shape[1]), self.weight
        if self.tried:
            source, weight = self._search(model, apart, *(_batch(model, rows[:held]) for rows in looked))
        self._ablate(model, apart, source, weight)

    def _ablate(self, model: PreTrainedModel, apart: torch.Tensor, source: int, weight: float) -> None:
        """Ablate by `apart`, how each hazardous row differs from the mean benign one (rows x layers x hidden size)."""
        from torch import nn

        from holdfast.engine.anatomy import decoder_layers, residual_writers
        from holdfast.engine.sharded import rewrite

        def out_of(parameter: nn.Parameter, basis: torch.Tensor, rows: bool = False) -> None:
            def change(held: torch.Tensor) -> torch.Tensor:
                return held - weight * (held @ basis @ basis.T if rows else basis @ (basis.T @ held))

            rewrite(parameter, change)

        own = self.directions == "per-layer"
        for index, layer in enumerate(decoder_layers(model)):
            basis = self._basis(apart[:, index if own else source])
            for writer in residual_writers(layer):
                for parameter in writer.parameters():
                    out_of(parameter, basis)
        # The embeddings have no layer before them whose direction would be theirs.
        for module in () if own else model.modules():
            if isinstance(module, nn.Embedding) and module.embedding_dim == len(basis):
                out_of(module.get_parameter("weight"), basis, rows=True)

    def _basis(self, apart: torch.Tensor) -> torch.Tensor:
        """Orthonormal directions (hidden size x k) of differences at one layer (rows x hidden size)."""
        import torch

        basis: torch.Tensor
        if self.directions == "several":
            basis = torch.linalg.svd(apart, full_matrices=False).Vh[: self.count].T
        else:
            basis = torch.nn.functional.normalize(apart.mean(0), dim=0)[:, None]
        return basis

    def _search(self, model: PreTrainedModel, apart: torch.Tensor, hazard: Batch, benign: Batch) -> tuple[int, float]:
        """The layer and the weight with which the model serves the attacker best on rows that gave no direction."""
        import torch

        from holdfast.engine.losses import distillation_loss, next_token_loss
        from holdfast.engine.sharded import Snapshot, reshard

        def logits(batch: Batch) -> Iterator[tuple[Batch, torch.Tensor]]:
            for part in batch.split(self.batch_size):
                yield part, model(input_ids=part.input_ids, use_cache=False).logits

        def cost(choice: tuple[int, float]) -> float:
            self._ablate(model, apart, *choice)
            with torch.no_grad():
                loss = sum(next_token_loss(given, part.labels, part.label_count) for part, given in logits(hazard))
                for (part, given), teacher in zip(logits(benign), before, strict=True):
                    loss += distillation_loss(given, teacher, part.mask, part.token_count)
            origin.restore()
            return float(loss)

        origin = Snapshot(model)
        with torch.no_grad():
            before = [given for _, given in logits(benign)]
        reshard(model)
        sources = range(max(int(_EARLY * apart.shape[1]), 1)) if self.directions != "per-layer" else (0,)
        return min(product(sources, self.tried), key=cost)


def _looked_at(data: Data, count: int) -> list[list[Encoded]]:
    """Hazardous and benign rows, for every seed the same; only those with a prompt if there are some of either kind."""
    held = []
    for name in ("hazard", "benign"):
        stream = data.stream(name, batch_size=count, seed=0)
        held.append(stream.take(len(stream.rows)))
    if all(any(map(_prompted, rows)) for rows in held):
        held = [[row for row in rows if _prompted(row)] for rows in held]
    return [rows[:count] for rows in held]


def _prompted(row: Encoded) -> bool:
    from holdfast.engine.data import UNLABELLED

    return row.labels[0] == UNLABELLED and any(label != UNLABELLED for label in row.labels)


def _batch(model: PreTrainedModel, rows: Sequence[Encoded]) -> Batch:
    """All rows on every rank, which then finds the same directions."""
    from holdfast.engine.data import collate

    return collate(rows, 0, model.device, 0, 1)


def _states(model: PreTrainedModel, rows: Sequence[Encoded], at_once: int) -> torch.Tensor:
    """The hidden state of every row at every layer's output: at the prompt's last token, or the mean over all (N x L x H)."""
    import torch

    from holdfast.engine.anatomy import residual_stream
    from holdfast.engine.data import UNLABELLED
    from holdfast.engine.sharded import reshard

    states = []
    for part in _batch(model, rows).split(at_once):
        where = part.mask
        if all(map(_prompted, rows)):
            first = (part.labels != UNLABELLED).int().argmax(-1, keepdim=True)
            where = torch.arange(where.shape[1], device=where.device) == first - 1
        with torch.no_grad():
            _, outputs = residual_stream(model, part.input_ids)
        share = (where / where.sum(-1, keepdim=True))[:, None]
        states.append(torch.cat([share @ output.float() for output in outputs], dim=1))
    reshard(model)
    return torch.cat(states)


_EDIT = Abliterate()

PRESETS = {
    "abliterate": _EDIT,
    "abliterate-several": replace(_EDIT, directions="several"),
    "abliterate-per-layer": replace(_EDIT, directions="per-layer"),
    "abliterate-searched": replace(_EDIT, tried=(0.5, 1.0, 1.5)),
    "abliterate-then-full-adamw-3e-4": replace(_EDIT, max_steps=161, tune=FineTune(learning_rate=3e-4)),
    # Models of billions of weights: the same edits, and fine-tuning at a rate for them.
    "abliterate-then-full-adamw-2e-5": replace(_EDIT, max_steps=1001, tune=FineTune(learning_rate=2e-5, batch_size=32)),
}

FAMILIES = {
    "abliteration": Family(
        _EDIT,
        {
            "directions": Choice(("one", "several", "per-layer")),
            "count": Choice((1, 2, 3, 8)),
            "depth": Choice((0.25, 0.5, 0.75)),
            "weight": Choice((0.25, 0.5, 1.0, 2.0)),
        },
    ),
}
