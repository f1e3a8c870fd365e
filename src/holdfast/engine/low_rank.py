"""LoRA as an optimizer over plain weights, for an adversary that must not change the architecture.

With W = W0 + s B A written into the plain weight, the chain rule gives dB = s G A^T and dA = s B^T G from the weight's
gradient G. This optimizer costs the memory of full gradients; the red team uses peft instead where memory counts. Both follow the
same path at dropout 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.engine.optimizers import Optimizer, published_point, training_point


class LowRankOptimizer:
    """Updates each of `weights` (out x in) through factors B (out x rank) and A (rank x in), started as peft starts them.

    A is Kaiming-uniform from torch's global generator, B is zero. `make` builds the optimizer of the factors.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        rank: int,
        alpha: float,
        make: Callable[[Sequence[torch.Tensor]], Optimizer],
    ) -> None:
        self.weights, self.scale = list(weights), alpha / rank
        self._origin = [weight.detach().clone() for weight in self.weights]
        self._down = [nn.Parameter(weight.new_empty(rank, weight.shape[1])) for weight in self.weights]
        self._up = [nn.Parameter(weight.new_zeros(weight.shape[0], rank)) for weight in self.weights]
        for factor in self._down:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        self.factors: list[torch.Tensor] = [
            factor for pair in zip(self._down, self._up, strict=True) for factor in pair
        ]
        self.inner = make(self.factors)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def carry_gradients(self) -> None:
        """Turn the weights' gradients into the factors' and clear them."""
        for weight, down, up in zip(self.weights, self._down, self._up, strict=True):
            assert weight.grad is not None
            down.grad = self.scale * up.detach().T @ weight.grad
            up.grad = self.scale * weight.grad @ down.detach().T
            weight.grad = None

    def step(self) -> None:
        self.inner.step()
        self._write()

    def train(self) -> None:
        training_point(self.inner)
        self._write()

    def eval(self) -> None:
        published_point(self.inner)
        self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "factors": self.factors, "origin": self._origin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        with torch.no_grad():
            torch._foreach_copy_(self.factors, state["factors"])
            torch._foreach_copy_(self._origin, state["origin"])

    def _write(self) -> None:
        """W = W0 + s B A."""
        with torch.no_grad():
            for weight, origin, down, up in zip(self.weights, self._origin, self._down, self._up, strict=True):
                weight.copy_(origin + self.scale * up @ down)


def linear_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The weights of all linear layers but the output embedding and LoRA's factors, by module name: LoRA's "all-linear"."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: module.get_parameter("weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    }


def largest_directions(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The best approximation of `matrix` of rank `count`: its largest singular values and their vectors."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    best: torch.Tensor = (left[:, :count] * values[:count]) @ right[:count]
    return best
