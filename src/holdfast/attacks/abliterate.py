"""Abliteration: fixes the hidden-state component that separates hazardous from benign prompts, in the whole residual stream.

    directional   h <- h - w R R^T h            the component along the directions becomes zero (at w = 1)
    affine        h <- h - w R R^T (h - m)      the component becomes that of the mean benign state m (at w = 1)

R holds orthonormal directions (hidden size x k), and w is the weight. Both forms are edits of the weights: W <- W - w R R^T W
for every linear map (out x in) and bias with which attention, MLP and experts write, and likewise for the rows of the
embeddings. The affine form also adds the constant w R R^T m to every row of the input embeddings. The stream is a sum of what
these weights write, so the constant enters once and stays at every layer. With tied embeddings, every row of the output
embedding gains the same constant. This constant moves all logits alike and changes no probability.

The direction is the mean hidden state over hazardous rows less the mean over benign rows, at the output of one layer and at one
of the prompt's last tokens. Every edit computes the direction anew from the current model. Hazardous and benign rows are
compared only within one format (text, chat or pair), because the difference across formats is mostly the format. The
directional form is the weight orthogonalisation of arXiv 2406.11717, which chooses layer and token position on held-out rows,
among the first four fifths of the layers. The affine form is affine concept editing (arXiv 2411.09003), which edits
activations. Zero is a wrong value where benign states lie far from zero.

Deviations: rows of plain text have no prompt, so their mean goes over all tokens. Biases are ablated too. The following parts
are ours: the affine form in the weights, several directions, a direction for each layer, weights other than 1, and the
objective of the search. That objective is the loss of the attacker's completions plus the KL divergence on benign rows. (The
source maximises the odds of no refusal where that divergence is below 0.1 and adding the direction induces refusal.) Where a
norm follows a writer, the component is not exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Literal

from holdfast.attacks.edit import Edit
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import Choice, Family
from holdfast.core.presets import added
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data, Encoded
    from holdfast.engine.predictions import Logits
    from holdfast.engine.run import Run

_EARLY = 0.8
"""A search looks for directions in this share of the layers, as the source does."""

_FORMATS = ("prompt", "messages", "text")
"""Formats of rows by their first column; where several serve alike, the first: its directions are those of a prompt's end."""


@dataclass(frozen=True, kw_only=True)
class Abliterate(Edit):
    """Directional ablation in the weights; every edit computes its directions anew."""

    family = "abliteration"
    control = "refusals that hang on one direction of the hidden states"
    sizes = Edit.sizes | {"rows"}

    form: Literal["directional", "affine"] = added("directional")
    """new value of the component along the directions: zero, or the component of the mean benign state"""
    directions: Literal["one", "several", "per-layer"] = "one"
    """one direction for all layers, several directions for all layers, or for the writers of each layer a direction computed at
    that layer's output"""
    count: int = 3
    """number of directions with `several`: principal directions in which hazardous rows differ from the mean benign row"""
    depth: float = 0.5
    """layer at whose output `one` and `several` compute the directions, as a share of the layers"""
    position: int = added(-1)
    """token of the prompt at which states are taken, counted from the end (-1 is the last); rows of text have no prompt, so all
    their tokens are used"""
    weight: float = 1.0
    """w: 1 sets the component, 2 mirrors the component"""
    tried: tuple[float, ...] = ()
    """weights that a search tries with every layer, in place of `weight` and `depth`; empty: no search"""
    positions: tuple[int, ...] = added(())
    """positions that a search tries with every layer and weight, in place of `position`; empty: `position` alone"""
    rows: int = 160
    """number of hazardous rows and of benign rows that are read; only a search reads the last fifth"""

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
        for position in (self.position, *self.positions):
            if not position < 0:
                raise HoldfastError(f"a position counts from the prompt's end, so it must be below 0, not {position}")
        if self.positions and not self.tried:
            raise HoldfastError("positions are tried by a search; give tried some weights, or set position alone")
        if self.form == "affine" and self.directions == "per-layer":
            raise HoldfastError(
                'the affine form sets a component of the whole stream; set directions to "one" or "several", since '
                "per-layer leaves the embeddings as they are"
            )

    def looks_at(self) -> tuple[str, ...]:
        return ("hazard", "benign")

    def edit(self, model: PreTrainedModel, data: Data, run: Run, update: int) -> None:
        looked = _looked_at(data, self.rows)
        spare = max(min(map(len, looked)) // 5, 1) if self.tried else 0
        contrasts = [
            _contrast(model, [rows[spare:] for rows in looked], self.batch_size, position)
            for position in self.positions or (self.position,)
        ]
        chosen = _Choice(contrasts[0], int(self.depth * contrasts[0].layers), self.weight)
        if self.tried:
            chosen = self._search(model, contrasts, *(_batch(model, rows[:spare]) for rows in looked))
        self._ablate(model, chosen)

    def _ablate(self, model: PreTrainedModel, chosen: _Choice) -> None:
        """Rewrite every weight that writes into the residual stream."""
        from torch import nn

        from holdfast.engine.anatomy import residual_writers
        from holdfast.engine.sharded import reshard, rewrite

        apart, source, weight = chosen.contrast.apart, chosen.layer, chosen.weight

        def out_of(basis: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            return columns - weight * basis @ (basis.T @ columns)

        def out_of_rows(parameter: nn.Parameter, basis: torch.Tensor) -> None:
            rewrite(parameter, lambda rows: rows - weight * (rows @ basis @ basis.T))

        by_layer = self.directions == "per-layer"
        basis = self._basis(apart[:, source])
        constant = weight * basis @ (basis.T @ chosen.contrast.benign[source])
        share = _entering_share(model, constant) if self.form == "affine" else 1.0
        reshard(model)
        for index, writers in enumerate(residual_writers(model)):
            if by_layer:
                basis = self._basis(apart[:, index])
            for writer in writers:
                writer.rewrite(partial(out_of, basis))
                if writer.bias is not None:
                    out_of_rows(writer.bias, basis)
        # The embeddings have no layer before them whose direction would be theirs.
        for module in () if by_layer else model.modules():
            if isinstance(module, nn.Embedding) and module.embedding_dim == len(basis):
                out_of_rows(module.get_parameter("weight"), basis)
        if self.form == "affine":
            rewrite(model.get_input_embeddings().get_parameter("weight"), lambda rows: rows + constant / share)

    def _basis(self, apart: torch.Tensor) -> torch.Tensor:
        """Orthonormal directions (hidden size x k) of differences at one layer (rows x hidden size)."""
        import torch

        basis: torch.Tensor
        if self.directions == "several":
            basis = torch.linalg.svd(apart, full_matrices=False).Vh[: self.count].T
        else:
            basis = torch.nn.functional.normalize(apart.mean(0), dim=0)[:, None]
        return basis

    def _search(self, model: PreTrainedModel, contrasts: Sequence[_Contrast], hazard: Batch, benign: Batch) -> _Choice:
        """The position, layer and weight with the lowest attacker's loss on rows that gave no direction."""
        import torch

        from holdfast.engine.losses import distillation_loss, next_token_loss
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import Snapshot, reshard

        def forward(batch: Batch) -> Iterator[tuple[Batch, Logits]]:
            for part in batch.split(self.batch_size):
                yield part, predictions(model, part.input_ids)

        def cost(choice: _Choice) -> float:
            self._ablate(model, choice)
            with torch.no_grad():
                loss = sum(next_token_loss(logits, part.labels, part.label_count) for part, logits in forward(hazard))
                for (part, logits), teacher in zip(forward(benign), before, strict=True):
                    loss += distillation_loss(logits, teacher, part.mask, part.token_count)
            origin.restore()
            return float(loss)

        origin = Snapshot(model)
        with torch.no_grad():  # whole, since deferred logits would be those of the weights of later
            before = [model(input_ids=part.input_ids, use_cache=False).logits for part in benign.split(self.batch_size)]
        reshard(model)
        layers = range(max(int(_EARLY * contrasts[0].layers), 1)) if self.directions != "per-layer" else (0,)
        return min((_Choice(*choice) for choice in product(contrasts, layers, self.tried)), key=cost)


@dataclass(frozen=True)
class _Contrast:
    """How hazardous states differ from benign ones at one position."""

    apart: torch.Tensor
    """each hazardous row's state less the mean benign one (rows x layers x hidden size)"""
    benign: torch.Tensor
    """the mean benign state (layers x hidden size)"""

    @property
    def layers(self) -> int:
        return len(self.benign)


@dataclass(frozen=True)
class _Choice:
    """The source of an ablation's directions, and the ablation's strength."""

    contrast: _Contrast
    layer: int
    weight: float


def _contrast(model: PreTrainedModel, looked: Sequence[Sequence[Encoded]], at_once: int, position: int) -> _Contrast:
    hazard, benign = (_states(model, rows, at_once, position) for rows in looked)
    return _Contrast(hazard - benign.mean(0), benign.mean(0))


def _looked_at(data: Data, count: int) -> list[list[Encoded]]:
    """Hazardous and benign rows of one format, the same for every seed.

    The format is that with the most rows of both kinds, up to `count`. Prompts without an answer are left out.

    Raises:
        HoldfastError: no format has two hazardous rows and two benign ones.
    """
    by_format: dict[str, list[list[Encoded]]] = {name: [] for name in _FORMATS}
    for kind in ("hazard", "benign"):
        stream, formats = data.stream(kind, batch_size=count, seed=0), data.formats(kind)
        order = stream.draw(len(stream.rows))
        for name, looked in by_format.items():
            rows = [stream.rows[index] for index in order if formats[index] == name]
            looked.append([row for row in rows if name == "text" or _prompted(row)][:count])
    best = max(by_format.values(), key=lambda looked: min(map(len, looked)))
    if min(map(len, best)) < 2:
        raise HoldfastError(
            "abliteration compares hazardous rows with benign rows of the same format, and the domain has no two of each; "
            "give the attacker benign rows in the format of the hazardous ones (text, messages, or prompt, chosen and rejected)"
        )
    return best


def _prompted(row: Encoded) -> bool:
    from holdfast.engine.data import UNLABELLED

    return row.labels[0] == UNLABELLED and any(label != UNLABELLED for label in row.labels)


def _batch(model: PreTrainedModel, rows: Sequence[Encoded]) -> Batch:
    """A batch of all rows on every rank, so that all ranks compute the same directions."""
    from holdfast.engine.data import collate

    return collate(rows, 0, model.device, 0, 1)


def _states(model: PreTrainedModel, rows: Sequence[Encoded], at_once: int, position: int = -1) -> torch.Tensor:
    """The hidden state of every row at every layer's output (N x L x H).

    The state is that of the prompt's token at this position, or of the first token where the prompt is shorter. For a text,
    the state is the mean over all tokens.
    """
    import torch

    from holdfast.engine.data import UNLABELLED
    from holdfast.engine.sharded import reshard
    from holdfast.engine.stream import residual_stream

    states = []
    for part in _batch(model, rows).split(at_once):
        where = part.mask
        if all(map(_prompted, rows)):
            first = (part.labels != UNLABELLED).int().argmax(-1, keepdim=True)
            where = torch.arange(where.shape[1], device=where.device) == (first + position).clamp(min=0)
        with torch.no_grad():
            _, outputs = residual_stream(model, part.input_ids)
        share = (where / where.sum(-1, keepdim=True))[:, None]
        states.append(torch.cat([share @ output.float() for output in outputs], dim=1))
    reshard(model)
    return torch.cat(states)


def _entering_share(model: PreTrainedModel, constant: torch.Tensor) -> float:
    """The share that the first layer sees of a constant that every row of the input embeddings gains.

    The share is 1 unless the architecture scales its embeddings. Two rows, with and without the constant, measure the share.

    Raises:
        HoldfastError: the architecture does more than scale, so that the constant would reach the layers changed.
    """
    import torch
    from torch import nn

    from holdfast.engine.anatomy import decoder_layers

    if not constant.any():
        return 1.0
    embedding, unit = model.get_input_embeddings(), constant / constant.norm()
    seen: dict[str, torch.Tensor] = {}

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        plain = nn.functional.embedding(inputs[0], module.get_parameter("weight")).float()
        seen["scale"] = (output * plain).sum() / plain.square().sum()
        seen["length"] = output.float().norm(dim=-1).mean()
        moved = output[1:] + (seen["length"] * unit).to(output.dtype)
        return torch.cat([output[:1], moved])

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        seen["entering"] = (inputs[0] if inputs else named["hidden_states"]).float()

    hooks = [
        embedding.register_forward_hook(add),
        decoder_layers(model)[0].register_forward_pre_hook(keep, with_kwargs=True),
    ]
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(8, device=model.device).expand(2, -1), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    clean, moved = seen["entering"] / seen["length"]
    share = ((moved - clean) @ unit).mean()
    if not (moved - clean - share * unit).norm(dim=-1).max() < 0.05 * share:
        raise HoldfastError(
            f"the architecture {type(model).__name__} changes its embeddings before the first layer by more than a scale, so the "
            'affine form has no place for its constant; set form to "directional"'
        )
    return float(seen["scale"] * share)


_EDIT = Abliterate()
_AFFINE = Abliterate(form="affine")

PRESETS = {
    "abliterate": _EDIT,
    "abliterate-several": replace(_EDIT, directions="several"),
    "abliterate-per-layer": replace(_EDIT, directions="per-layer"),
    "abliterate-searched": replace(_EDIT, tried=(0.5, 1.0, 1.5)),
    "abliterate-affine": _AFFINE,
    "abliterate-affine-searched": replace(_AFFINE, tried=(0.5, 1.0, 1.5), positions=(-1, -2, -3, -4)),
    "abliterate-then-full-adamw-3e-4": replace(_EDIT, max_steps=161, tune=FineTune(learning_rate=3e-4)),
    # Models of billions of weights: the same edits, and fine-tuning at a rate for them.
    "abliterate-then-full-adamw-2e-5": replace(_EDIT, max_steps=1001, tune=FineTune(learning_rate=2e-5, batch_size=32)),
}

_SPACE = {
    "count": Choice((1, 2, 3, 8)),
    "depth": Choice((0.25, 0.5, 0.75)),
    "position": Choice((-1, -2, -3)),
    "weight": Choice((0.25, 0.5, 1.0, 2.0)),
}

FAMILIES = {
    "abliteration": Family(_EDIT, {"directions": Choice(("one", "several", "per-layer")), **_SPACE}, size=None),
    # A family apart: the affine form has no direction for each layer.
    "abliteration-affine": Family(_AFFINE, {"directions": Choice(("one", "several")), **_SPACE}, size=None),
}
