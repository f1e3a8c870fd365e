"""Embedding and latent attacks that are stored in the weights, so that the attacked model needs no special prompt.

Soft start token: the embedding of the token that begins every text is trained as a soft prompt.

    e <- e - s * a * sign(grad)           a: root mean square of the other embeddings

The formula is the universal embedding attack of arXiv 2402.09063, whose code changes about twenty embeddings after the prompt
by signed gradients of fixed size 0.001. Deviations: the attack changes one embedding, at the start. The step size is relative.
The step size falls linearly to zero.

Latent PGD: one vector for every token at each chosen layer's output, within a radius of its hidden states.

    d <- project(d - s * r * grad / |grad|, |d| <= r)        r = radius * median norm of the layer's hidden states

The formula is the adversary of latent adversarial training (arXiv 2403.05030, 2407.15549), used as an attack. The vector is
stored in the bias of the MLP's last map, as the code of arXiv 2406.11717 adds a direction. Deviations: the sources perturb
every token of every row separately, within absolute radii. A vector that is published with the weights is the same for all
tokens, so this attack is weaker.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from holdfast.engine.anatomy import LinearMap
    from holdfast.engine.data import Data, Stream
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Universal(Attack):
    """Gradient descent on an embedding or a few vectors in the hidden states, the same for every text."""

    sizes = Attack.sizes | {"batch_size"}

    hazard: Literal["hazard", "hazard_ood", "hazard_all"] = "hazard"
    """hazardous rows of the attacker: in distribution, out of distribution, or both"""
    batch_size: int = 16
    """rows a step"""
    step_size: float = 0.05
    """s at the first step; s then falls linearly"""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HoldfastError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.step_size > 0:
            raise HoldfastError(f"step_size must be above 0, not {self.step_size}")

    @property
    def benign_steps(self) -> int:
        return 0

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def reads(self) -> tuple[str, ...]:
        return (self.hazard,)

    @abc.abstractmethod
    def start(self, model: PreTrainedModel, data: Data, rows: Stream, run: Run) -> Callable[[float], None]:
        """The function that takes a step of size s along the gradients of the model."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import clear_gradients, trainable

        model.train(False)  # throughout: what an input does is not to be learned through dropout
        rows = data.stream(self.hazard, batch_size=self.batch_size, seed=run.seed)
        move = self.start(model, data, rows, run)
        run.track(rows=rows)
        for step in range(run.start, self.max_steps):
            clear_gradients(trainable(model))
            total = 0.0
            for part in next(rows).split(run.micro_batch):
                logits = predictions(model, part.input_ids)
                loss = next_token_loss(logits, part.labels, part.label_count)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            move(self.step_size * (1 - step / self.max_steps))
            yield total


@dataclass(frozen=True, kw_only=True)
class SoftStartToken(Universal):
    """Signed gradient descent on the start token's embedding; `step_size` is a share of the other embeddings' size."""

    family = "latent and embedding attacks"
    control = "refusals whose direction the start token can cancel"

    def prepare(self, model: PreTrainedModel) -> None:
        """Only the embedding is trainable: no other gradient is wanted."""
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)

    def start(self, model: PreTrainedModel, data: Data, rows: Stream, run: Run) -> Callable[[float], None]:
        import torch

        from holdfast.engine.sharded import rewrite, whole

        token, weight = data.tokenizer.bos_token_id, model.get_input_embeddings().get_parameter("weight")
        if not isinstance(token, int) or any(row.ids[0] != token for row in rows.rows):
            raise HoldfastError(
                "the tokenizer puts no start token before every text, so there is no embedding to attack"
            )
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None and head.weight is weight:
            raise HoldfastError(
                "the model's input embeddings are its output embeddings too; this attack needs them apart"
            )
        with torch.no_grad():
            # Of the others, which stay as they are: a resumed run finds the same size, to the last bit.
            square = whole(weight).float().square().mean(-1)
            square[token] = 0.0
            size = (square.sum() / (len(square) - 1)).sqrt()

        def move(share: float) -> None:
            assert weight.grad is not None
            slope = whole(weight.grad)[token].float()

            def change(embeddings: torch.Tensor) -> torch.Tensor:
                moved = embeddings.clone()
                moved[token] -= share * size * slope.sign()
                return moved

            rewrite(weight, change)

        return move


@dataclass(frozen=True, kw_only=True)
class LatentPGD(Universal):
    """Projected gradient descent on one vector a layer; `step_size` is a share of the longest vector allowed."""

    family = "latent and embedding attacks"
    control = "refusals that hang on one direction of the hidden states, within the radius"

    depths: tuple[float, ...] = (0.0, 0.5, 0.9)
    """the layers, each as a share of the number of layers"""
    radius: float = 0.35
    """greatest length of a vector, as a share of the median norm of the hidden states that the vector is added to"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise HoldfastError(f"radius must be above 0, not {self.radius}")
        if not self.depths or not all(0 <= depth < 1 for depth in self.depths):
            raise HoldfastError(f"depths must be one or more shares between 0 and 1, not {self.depths}")

    def layers(self, model: PreTrainedModel) -> list[int]:
        """The chosen layers, counted from 0."""
        count = model.config.get_text_config().num_hidden_layers
        return sorted({int(depth * count) for depth in self.depths})

    def prepare(self, model: PreTrainedModel) -> None:
        """Give the last map of the chosen layers' MLP a bias of zero where it has none. Nothing else is trainable."""
        import torch

        model.requires_grad_(False)
        for writer in self._writers(model):
            if writer.bias is None:
                writer.owner.bias = torch.nn.Parameter(writer.weight.new_zeros(writer.outputs))
            writer.owner.get_parameter("bias").requires_grad_(True)

    def start(self, model: PreTrainedModel, data: Data, rows: Stream, run: Run) -> Callable[[float], None]:
        import torch

        from holdfast.engine.data import collate
        from holdfast.engine.sharded import reshard, rewrite, whole
        from holdfast.engine.stream import residual_stream

        writers = self._writers(model)
        biases = [writer.bias for writer in writers if writer.bias is not None]
        if len(biases) < len(writers):
            raise HoldfastError(
                f"a {type(model).__name__} has no biases in its MLPs to hold a perturbation; this attack gives it some where "
                "it is measured, and cannot be an adversary while a safeguard trains"
            )
        sample = collate(rows.rows[: self.batch_size], 0, model.device, 0, 1)  # on every rank the same
        with torch.no_grad():
            _, outputs = residual_stream(model, sample.input_ids)
        reshard(model)
        # The median: the first token's state is often hundreds of times as long as the others'.
        norms = [outputs[layer][sample.mask].float().norm(dim=-1).median() for layer in self.layers(model)]
        balls = _Balls(biases, self.radius * torch.stack(norms))
        run.track(balls=balls)

        def move(share: float) -> None:
            for bias, centre, radius in zip(biases, balls.centres, balls.radii, strict=True):
                assert bias.grad is not None
                slope = whole(bias.grad).float()
                rewrite(bias, partial(_step, centre, radius, -share * radius * slope / slope.norm().clamp(min=1e-12)))

        return move

    def _writers(self, model: PreTrainedModel) -> list[LinearMap]:
        from holdfast.engine.anatomy import mlp_writers

        layers = mlp_writers(model, self.layers(model))
        if any(len(writers) > 1 or writers[0].experts is not None for writers in layers):
            raise HoldfastError(
                f"the MLPs of a {type(model).__name__} are mixtures of experts, which have no bias that every token passes, so "
                "there is no place for the perturbation of this attack"
            )
        return [writer for [writer] in layers]


def _step(centre: torch.Tensor, radius: torch.Tensor, push: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The bias after a push, projected back onto the ball around `centre`."""
    away = bias + push - centre
    back: torch.Tensor = centre + away * (radius / away.norm().clamp(min=1e-12)).clamp(max=1.0)
    return back


class _Balls:
    """The first values and radii of the vectors; a resumed run cannot read these from the model any more."""

    def __init__(self, biases: Sequence[nn.Parameter], radii: torch.Tensor) -> None:
        from holdfast.engine.sharded import whole

        self.centres, self.radii = [whole(bias).detach().float().clone() for bias in biases], radii

    def state_dict(self) -> dict[str, Any]:
        return {"centres": self.centres, "radii": self.radii}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.centres = [centre.to(self.radii.device) for centre in state["centres"]]
        self.radii = state["radii"].to(self.radii.device)


# All lengths are relative, so that they may serve models of any size; they were chosen on the testbed.
PRESETS = {
    "soft-start-token-sign-1e-1": SoftStartToken(step_size=0.1),
    "latent-pgd-one-layer": LatentPGD(depths=(0.0,), radius=0.5),
    "latent-pgd-three-layers": LatentPGD(),
}

FAMILIES = {
    "latent": Family(
        LatentPGD(),
        {
            "depths": Choice(((0.0,), (0.25, 0.5, 0.75), (0.0, 0.5), LatentPGD().depths)),
            "radius": Log(0.05, 2.0),
            "step_size": Log(0.01, 0.2),
            "hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
        },
    ),
}
