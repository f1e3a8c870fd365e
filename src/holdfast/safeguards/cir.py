"""CIR, collapse of irrelevant representations, and MCU, minor component unlearning: an update without what all text shares.

    loss    = mean over layers and forget tokens of max(0, o . o_0) / |o_0|^2        o: output of a layer's MLP, o_0: before
    G       = sum over forget tokens of P_g (gradient of the loss by a map's output) (P_a (the map's input))^T
    W      <- W - rate * |W| / |G| * G                                               for each map of the MLPs below
    W      <- W - retain rate * gradient of retain(theta)                            a second update, on retain rows

P_a and P_g take out the mean and the largest principal components of a map's inputs and of those gradients over the forget
rows: what is common to these rows is common to much other text. The components are found anew as the weights move. CIR is arXiv
2509.11816 as its code writes it (24 directions of inputs, 36 of gradients, mean included; layers 6 to 11; an update of length
0.2; retain by SGD at 3e-4 on the relative distance of hidden states after layer 11). MCU (arXiv 2605.11685, as its code writes
it) is CIR with another loss: the mean and the 7 largest components of the MLP outputs before are taken out of o and o_0, so that
the minor components are broken, which a relearning attack is said to restore less. The first token of a row is never used.

Constants of `cir` and `mcu` were chosen on the testbed. Deviations: a rate is a share of the length of the trained weights. The
source finds components over the whole last pass, of vectors at the weights as they then were; here they are those of a sample at
the present weights. |o_0| is measured once, not for each batch. The source leaves out a batch's last position too. The number of
updates is fixed; the source stops at a rise of 0.1 % in the loss of general text. The retain loss is TAR's. Maps of several
experts in one tensor, and MLPs that route tokens, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import OptimizerName
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.parts.objective import RetainLoss

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from holdfast.engine.anatomy import LinearMap
    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class CIR(Safeguard):
    """Breaks the MLP outputs of hazardous text by updates that leave out the directions shared by all hazardous text."""

    rate_setting: ClassVar[str] = "learning_rate"

    outer_steps: int = 60
    """updates of each kind"""
    learning_rate: float = 0.02
    """length of a forget update, as a share of the length of all weights that it changes"""
    layers: tuple[int, ...] = (1, 2)
    """layers whose MLP outputs are broken, counted from 0; the MLPs of these layers and of all below are trained"""
    input_directions: int = 2
    """directions taken out of a map's inputs: the mean, and the largest principal components"""
    gradient_directions: int = 2
    """directions taken out of the gradients by a map's outputs: the mean, and the largest principal components"""
    output_directions: int = 0
    """directions of an MLP's outputs that are not broken: the mean, and the largest principal components; 0: all are (CIR)"""
    sample_rows: int = 128
    """forget rows over which directions and lengths are measured"""
    refresh_steps: int = 10
    """updates until the directions of inputs and gradients are found anew"""
    retain_learning_rate: float = 1e-3
    """learning rate of the retain updates"""
    optimizer: OptimizerName = "adamw"
    """the optimizer of the retain updates"""
    weight_decay: float = 0.0
    """its decoupled weight decay"""
    forget_batch_size: int = 32
    """hazardous rows an update, from forget and forget_heldout together"""
    retain_batch_size: int = 32
    """retain rows an update"""
    retain: RetainLoss = RetainLoss()
    """the retain loss"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=(
                "outer_steps",
                "learning_rate",
                "input_directions",
                "gradient_directions",
                "sample_rows",
                "refresh_steps",
                "retain_learning_rate",
                "forget_batch_size",
                "retain_batch_size",
                "micro_batch",
            ),
            not_negative=("output_directions", "weight_decay"),
        )
        if not self.layers:
            raise HoldfastError("layers names no layer; name at least one whose MLP outputs are broken")

    @property
    def on_one_device(self) -> str:
        return "its loss is taken inside the blocks of the model, whose weights are whole in passes through a whole block alone"

    def trained(self, model: PreTrainedModel) -> list[nn.Parameter]:
        from holdfast.engine.anatomy import mlp_maps

        return [found.weight for found in mlp_maps(model, range(max(self.layers) + 1))]

    def against_sinks(self) -> Mapping[str, Any]:
        return self.retain.against_sinks("retain")

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.data import collate
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.sharded import clear_gradients, trainable

        pooled = data.renamed(forget=("forget", "forget_heldout"))
        forget = pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        # The same rows on every rank, each with all of them.
        rows = pooled.stream("forget", batch_size=self.sample_rows, seed=run.seed + 2)
        sample = collate(rows.take(self.sample_rows), rows.pad, model.device)
        broken = _Broken(self, model, run, sample)
        optimizer = make_optimizer(
            self.optimizer, self.trained(model), self.retain_learning_rate, weight_decay=self.weight_decay
        )
        run.track(optimizer=optimizer, broken=broken, forget=forget, retain=retain)
        base = run.base if self.retain.compares else None
        for step in range(run.start, self.outer_steps):
            model.train()
            training_point(optimizer)
            clear_gradients(trainable(model))
            if step % self.refresh_steps == 0:
                broken.refresh(sample)
            losses = {"breaking loss": broken.update(next(forget))}
            total = 0.0
            for part in next(retain).split(self.micro_batch):
                loss = self.retain(model, base, part)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            optimizer.step()
            published_point(optimizer)
            clear_gradients(trainable(model))
            model.train(False)
            yield {**losses, "retain loss": total}


class _Broken:
    """The forget updates: what is broken, the maps that are trained for it, and the directions that the updates leave out."""

    def __init__(self, settings: CIR, model: PreTrainedModel, run: Run, sample: Batch) -> None:
        from holdfast.engine.anatomy import decoder_layers, mlp_maps

        decoder_layers(model, settings.layers)
        self.settings, self.model, self.before, self.seed = settings, model, run.initial, run.seed
        self.maps: list[LinearMap] = mlp_maps(model, range(max(settings.layers) + 1))
        for found in self.maps:
            if found.experts is not None or found.parameter != "weight":
                raise HoldfastError(
                    f"{found.name} holds the maps of several experts, and this reads what enters each map; take rep-select"
                )
        self.shared: list[torch.Tensor] = []
        """per layer: directions of the outputs that are not broken, N x H"""
        self.lengths: list[float] = []
        """per layer: mean length of the outputs before, without these directions"""
        self.inputs: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []
        """per map: directions, N x the map's inputs, and N x its outputs"""
        self._measure(sample)

    def update(self, batch: Batch) -> float:
        """One forget update; return the loss."""
        import torch

        from holdfast.engine.sharded import whole

        slopes = [
            torch.zeros(found.matrices(whole(found.weight.detach())).shape, device=batch.input_ids.device)
            for found in self.maps
        ]
        total = 0.0
        for part in batch.split(self.settings.micro_batch):
            loss, seen = self._backward(part)
            total += loss
            for slope, (states, gradients) in zip(slopes, seen, strict=True):
                slope += gradients.mT @ states
        slopes = [
            without(without(slope, inputs).mT, gradients).mT
            for slope, inputs, gradients in zip(slopes, self.inputs, self.gradients, strict=True)
        ]
        length, size = (
            float(torch.stack([tensor.float().square().sum() for tensor in tensors]).sum().sqrt())
            for tensors in (slopes, [whole(found.weight.detach()) for found in self.maps])
        )
        if length > 0:
            for found, slope in zip(self.maps, slopes, strict=True):
                found.rewrite(lambda matrix, step: matrix - self.settings.learning_rate * size / length * step, [slope])
        return total

    def refresh(self, sample: Batch) -> None:
        """Find the directions of inputs and gradients at the present weights."""
        import torch

        parts = [self._backward(part)[1] for part in sample.split(self.settings.micro_batch)]
        by_map = [tuple(map(torch.cat, zip(*seen, strict=True))) for seen in zip(*parts, strict=True)]
        counts = self.settings.input_directions, self.settings.gradient_directions
        self.inputs, self.gradients = (
            [leading(vectors[side], count, self.seed) for vectors in by_map] for side, count in enumerate(counts)
        )

    def state_dict(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "gradients": self.gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.model.device
        self.inputs, self.gradients = ([found.to(device) for found in state[side]] for side in ("inputs", "gradients"))

    def _measure(self, sample: Batch) -> None:
        """Measure the outputs before, once."""
        import torch

        parts = [self._outputs_before(part) for part in sample.split(self.settings.micro_batch)]
        for outputs in (torch.cat(layer) for layer in zip(*parts, strict=True)):
            self.shared.append(leading(outputs, self.settings.output_directions, self.seed))
            self.lengths.append(float(without(outputs, self.shared[-1]).norm(dim=-1).mean()))

    def _outputs_before(self, part: Batch) -> list[torch.Tensor]:
        import torch

        with torch.no_grad(), _outputs(self.before, self.settings.layers) as outputs:
            self._read(self.before, part)
        return [_tokens(output, part) for output in outputs]

    def _backward(self, part: Batch) -> tuple[float, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The loss of a microbatch, and of each map the inputs (tokens x inputs) and the gradients (tokens x outputs)."""
        import torch

        from holdfast.engine.sharded import clear_gradients, trainable

        before = self._outputs_before(part)
        with _outputs(self.model, self.settings.layers) as outputs, _passing(self.maps) as seen:
            self._read(self.model, part)
            terms = []
            for output, old, shared, length in zip(outputs, before, self.shared, self.lengths, strict=True):
                minor = without(_tokens(output, part), shared)
                overlap = (minor * without(old, shared)).sum(-1) / max(length, 1e-12) ** 2
                terms.append(overlap.clamp(min=0).sum())
            loss = torch.stack(terms).sum() / (len(terms) * (part.token_count - part.row_count))
            loss.backward()  # type: ignore[no-untyped-call]
        clear_gradients(trainable(self.model))
        return loss.item(), [tuple(_tokens(tensor, part) for tensor in pair) for pair in seen]  # type: ignore[misc]

    def _read(self, model: PreTrainedModel, part: Batch) -> None:
        """The forward pass, up to the deepest MLP that is broken."""
        from holdfast.engine.stream import states_alone

        states_alone(model, part.input_ids, (max(self.settings.layers) + 1,), several=True)


@contextmanager
def _outputs(model: PreTrainedModel, layers: tuple[int, ...]) -> Iterator[list[Any]]:
    """The outputs of the layers' MLPs in the passes inside, in the order of the layers."""
    from holdfast.engine.anatomy import decoder_layers, feed_forward

    outputs: list[Any] = [None] * len(layers)

    def keep(place: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[place] = output[0] if isinstance(output, tuple) else output

        return hook

    blocks = [feed_forward(layer) for layer in decoder_layers(model, layers)]
    hooks = [block.register_forward_hook(keep(place)) for place, block in enumerate(blocks)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _passing(maps: list[LinearMap]) -> Iterator[list[list[torch.Tensor]]]:
    """Per map, its inputs and the gradient by its outputs in the pass inside."""
    seen: list[list[Any]] = [[None, None] for _ in maps]

    def watch(place: int) -> Any:
        def forward(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[place][0] = inputs[0].detach()
            output.register_hook(lambda gradient: seen[place].__setitem__(1, gradient.detach()))

        return forward

    hooks = [found.owner.register_forward_hook(watch(place)) for place, found in enumerate(maps)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _tokens(tensor: torch.Tensor | None, part: Batch) -> torch.Tensor:
    """Of what belongs to each position, the rows of tokens but the first of a text: tokens x D, in float32.

    Raises:
        HoldfastError: it does not belong to each position, as in an MLP that routes tokens.
    """
    positions = part.mask.numel()
    if tensor is None or tensor.numel() % positions or tensor.shape[-1] * positions != tensor.numel():
        raise HoldfastError("an MLP of this architecture does not read every token, which this needs; take rep-select")
    seen = part.mask.clone()
    seen[:, 0] = False
    return tensor.reshape(*part.mask.shape, -1)[seen].float()


def leading(vectors: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """The direction of the mean of some vectors and their largest principal components, `count` in all: at most count x D.

    Components are found by torch's randomised decomposition around the mean. A mean that is nothing beside the vectors has no
    direction but that of rounding, and its place is 0. In MCU the last layer's gradients have such a mean: at the weights
    before, what is broken has no mean.

    Args:
        vectors: N x D.
        count: how many directions; 0: none.
        seed: of the decomposition.
    """
    import torch

    if count == 0:
        return vectors.new_zeros(0, vectors.shape[-1])
    mean = vectors.mean(0)
    length, least = mean.norm(), _NOTHING * vectors.square().sum(-1).mean().sqrt()
    direction = mean / length if length > least else torch.zeros_like(mean)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A few more than are asked for make those that are asked for exact.
        found = torch.pca_lowrank(vectors, q=min(count - 1 + _SPARE, *vectors.shape), niter=_ITERATIONS)[2].mT
    return torch.cat([direction[None], found[: count - 1]])


_NOTHING, _SPARE = 1e-3, 8
_ITERATIONS = 16


def without(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Vectors (N x D) without the directions that `leading` gives: first without the mean, then without the components."""
    for part in (directions[:1], directions[1:]):
        vectors = vectors - (vectors @ part.mT) @ part
    return vectors


PRESETS = {
    "cir": CIR(),
    "mcu": CIR(input_directions=8, gradient_directions=12, output_directions=8),
}
