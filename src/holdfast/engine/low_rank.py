"""LoRA: put into a model with peft, or as an optimizer over plain weights for an adversary that must not change the architecture.

With W = W0 + s B A written into the plain weight, the chain rule gives dB = s G A^T and dA = s B^T G from the weight's
gradient G. This optimizer costs the memory of full gradients; the red team uses peft instead where memory counts. Both follow the
same path at dropout 0. Every expert of a mixture has factors of its own.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import LinearMap, linear_maps, plain_name
from holdfast.engine.optimizers import Optimizer, published_point, training_point
from holdfast.engine.rounding import rounded, wide
from holdfast.engine.sharded import assign, rewrite, whole


class LowRankOptimizer:
    """Updates each of `maps` (out x in) through factors B (out x rank) and A (rank x in), started as peft starts them.

    A is Kaiming-uniform from torch's global generator, B is zero. The maps of experts have a factor each, stacked as they are.
    `make` builds the optimizer of the factors.
    """

    def __init__(
        self,
        maps: Sequence[LinearMap],
        rank: int,
        alpha: float,
        make: Callable[[Sequence[torch.Tensor]], Optimizer],
    ) -> None:
        self.maps, self.scale = list(maps), alpha / rank
        weights = [found.matrices(found.weight.detach()) for found in self.maps]
        self._origin = [weight.clone() for weight in weights]
        # Factors are few, so they are float32 beside bfloat16 weights too.
        self._down = [
            nn.Parameter(weight.new_empty(*weight.shape[:-2], rank, weight.shape[-1], dtype=wide(weight.dtype)))
            for weight in weights
        ]
        self._up = [
            nn.Parameter(weight.new_zeros(*weight.shape[:-1], rank, dtype=wide(weight.dtype))) for weight in weights
        ]
        for factor in self._down:
            drawn = torch.empty(factor.shape, dtype=factor.dtype, device=factor.device)
            nn.init.kaiming_uniform_(drawn.flatten(0, -2), a=math.sqrt(5))
            assign(factor, drawn)
        self.factors: list[torch.Tensor] = [
            factor for pair in zip(self._down, self._up, strict=True) for factor in pair
        ]
        self.inner = make(self.factors)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def carry_gradients(self) -> None:
        """Turn the weights' gradients into the factors' and clear them."""
        for found, down, up in zip(self.maps, self._down, self._up, strict=True):
            gradient, found.weight.grad = found.weight.grad, None
            if gradient is None:  # the text went through other parts of the model only
                down.grad = up.grad = None
                continue
            gradient = found.matrices(gradient).to(down.dtype)
            down.grad = self.scale * up.detach().mT @ gradient
            up.grad = self.scale * gradient @ down.detach().mT

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
        for kept, saved in ((self.factors, state["factors"]), (self._origin, state["origin"])):
            for tensor, value in zip(kept, saved, strict=True):
                assign(tensor, value)

    def _write(self) -> None:
        """W = W0 + s B A."""
        with torch.no_grad():
            for found, origin, down, up in zip(self.maps, self._origin, self._down, self._up, strict=True):
                changed = origin + self.scale * up @ down
                found.matrices(found.weight).copy_(rounded(changed, found.weight.dtype))


def insert_adapters(model: PreTrainedModel, rank: int, alpha: float, dropout: float) -> None:
    """Put LoRA beside every linear map, with peft. Its factors are then the only trainable weights.

    Dropout stands before the factors of linear layers. The factors of experts and routers change the weight itself, so they
    have none.

    Raises:
        HoldfastError: as `linear_maps`, or a map is used where LoRA would not be seen.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, ParamWrapper

    class Wrapper(ParamWrapper):
        """peft's wrapper of a module whose own weights get LoRA; what the model reads and writes there is still the module's."""

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.base_layer, name)

        def __setattr__(self, name: str, value: Any) -> None:
            base = self.get_base_layer()
            if name in vars(base) and name not in vars(self):
                setattr(base, name, value)  # as what a recurrent layer keeps
            else:
                super().__setattr__(name, value)

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            held = self.get_base_layer()._parameters
            names = list(held)
            output = super().forward(x, *args, **kwargs)
            for name in names:  # peft takes a weight out and puts it back last; noise and searches go by the order
                held[name] = held.pop(name)
            return output

    maps = linear_maps(model)
    _check_reach(model, maps)
    for found in maps:
        if found.experts is not None:  # peft reads there which side comes first
            vars(found.owner)["is_transposed"] = found.transposed
    plain = [found for found in maps if type(found.owner).forward in (nn.Linear.forward, Conv1D.forward)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=[f"model.{found.name.removesuffix('.weight')}" for found in plain],
        target_parameters=[f"model.{found.name}" for found in maps if found not in plain],
    )
    with warnings.catch_warnings():
        # peft sees by itself which side of a Conv1D comes first, and then warns.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        # Around a model that peft knows, peft would take other targets than those named.
        inject_adapter_in_model(config, nn.ModuleDict({"model": model}))
    for layer in model.modules():
        if isinstance(layer, Linear):
            for factor in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
                factor.data = factor.data.to(wide(factor.dtype))
            if dropout:
                layer.lora_dropout["default"] = nn.Dropout(dropout)
        elif isinstance(layer, ParamWrapper):
            layer.__class__ = Wrapper


def merge_adapters(model: PreTrainedModel) -> None:
    """Add LoRA to the weights beside which it stands, and take it out of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    changes = adapter_changes(model)
    for name, weight in own_weights(model).items():
        if name in changes:
            rewrite(weight, partial(_plus, whole(changes[name]())))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    for name, layer in layers.items():
        if not name.endswith(".base_layer"):  # peft wraps a module with several weights several times
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _plus(change: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight + change


def own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have without LoRA around them, and without LoRA's factors."""
    return {plain_name(name): weight for name, weight in model.named_parameters() if "lora_" not in name}


def adapter_changes(model: nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """What peft's LoRA adds to each weight that it stands beside, by the name of `own_weights`."""
    from peft.tuners.lora import Linear, ParamWrapper

    return {
        f"{plain_name(name)}.{getattr(layer, 'parameter_name', 'weight')}": partial(layer.get_delta_weight, "default")
        for name, layer in model.named_modules()
        if isinstance(layer, Linear | ParamWrapper)
    }


def _check_reach(model: PreTrainedModel, maps: Sequence[LinearMap]) -> None:
    """LoRA stands beside a module, so each weight must be read by its own module alone, and in one place."""
    parents = {child: module for module in model.modules() for child in module.children()}
    places = Counter(
        part for module in model.modules() for part in (*module.children(), *module.parameters(recurse=False))
    )
    for found in maps:
        parent = parents[found.owner]
        # State-space layers, torch's attention and LongCat's router hand the weights of what they hold to a kernel.
        inside = {"A_log", "D"} <= parent._parameters.keys() or isinstance(parent, nn.MultiheadAttention)
        inside = inside or found.name.endswith("router.classifier.weight")
        if found.experts is not None and found.weight.ndim == 2:
            raise HoldfastError(
                f"LoRA cannot give each expert of {found.name} of a {type(model).__name__} factors of its own; take an attack "
                "whose lora_rank is 0"
            )
        if inside or places[found.owner] > 1 or places[found.weight] > 1:
            raise HoldfastError(
                f"LoRA would not reach every use of {found.name} of a {type(model).__name__}; take an attack whose lora_rank is 0"
            )


def largest_directions(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The best approximation of `matrix` of rank `count`: its largest singular values and their vectors."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    best: torch.Tensor = (left[:, :count] * values[:count]) @ right[:count]
    return best
