"""The parts of a model, found from its structure: layers, MLP, linear maps, the residual stream and its writers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from holdfast.core.types import HoldfastError
from holdfast.engine.sharded import rewrite

_PLAIN_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_OUTPUTS_FIRST = {"weight", "in_proj_weight", "x_proj_weight", "dt_proj_weight", "fn", "hc_fn", "w1", "v1"}
_INPUTS_FIRST = {"w2", "input_gate_weight", "recurrent_gate_weight", "mm_input_projection_weight", "proj"}
_EXPERTS = {"gate_up_proj", "gate_proj", "up_proj", "down_proj"}
"""Weights by name that belong to no linear layer; of experts their owner or their sizes tell which side comes first."""

_WRITERS = {
    *("o_proj", "out_proj", "o_b_proj", "Wo", "dense", "c_proj", "attention_out", "linear_out", "per_layer_projection"),
    *("down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "w_out", "output_linear", "proj_down"),
}
"""Names of the maps that write into the residual stream. The order in which a class makes its maps tells nothing."""


def decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a model that reads text and ends in the last hidden state; the language model of a model that sees too."""
    found: torch.nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    if found is model:
        lists = torch.nn.ModuleList
        found = next((part for part in model.children() if any(isinstance(m, lists) for m in part.modules())), model)
    return found


def decoder_layers(model: PreTrainedModel, chosen: Sequence[int] | None = None) -> list[torch.nn.Module]:
    """The blocks of the residual stream, first to last, or only the chosen blocks, counted from 0.

    Raises:
        HoldfastError: the architecture has no list of blocks, or too few blocks.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    named = decoder(model).named_modules()
    lists = [part for name, part in named if isinstance(part, torch.nn.ModuleList) and "image_encoder" not in name]
    layers = next((part for part in lists if len(part) == count), None)
    if layers is None or count is None:
        raise HoldfastError(
            f"the architecture {type(model).__name__} has no list of {count or 'its'} layers, which this needs"
        )
    if chosen is not None and not all(0 <= index < count for index in chosen):
        raise HoldfastError(
            f"layers {', '.join(map(str, chosen))} were asked for and the model has layers 0 to {count - 1}"
        )
    return [layers[index] for index in (range(count) if chosen is None else chosen)]


def feed_forward(layer: torch.nn.Module) -> torch.nn.Module:
    """The MLP of a decoder layer.

    Raises:
        HoldfastError: no part of the layer has the name of an MLP.
    """
    for name, module in layer.named_children():
        if _is_mlp(name) and list(module.parameters()):  # a dropout may be named after the MLP that it follows
            return module
    raise _no_mlp(layer)


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a model, or the maps of all experts, which one tensor holds."""

    name: str
    """the tensor's name, as it is without LoRA around it"""
    owner: nn.Module
    """the module that has the tensor"""
    parameter: str
    """the tensor's name there"""
    transposed: bool = False
    """whether the tensor holds inputs x outputs instead of outputs x inputs"""
    experts: int | None = None
    """how many maps the tensor stacks along its first dimension; None: it holds one matrix"""

    @property
    def weight(self) -> nn.Parameter:
        return self.owner.get_parameter(self.parameter)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias (outputs, or experts x outputs), if there is one."""
        found = getattr(self.owner, "bias" if self.parameter == "weight" else f"{self.parameter}_bias", None)
        return found if isinstance(found, nn.Parameter) else None

    @property
    def outputs(self) -> int:
        """How many outputs each map has."""
        return int(self.matrices(self.weight.detach()).shape[-2])

    def matrices(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the weight's shape as outputs x inputs, or experts x outputs x inputs: a view."""
        if self.experts is not None and tensor.ndim == 2:
            tensor = tensor.view(self.experts, -1, tensor.shape[-1])
        return tensor.mT if self.transposed else tensor

    def each(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """A tensor of the weight's shape as one matrix a map, outputs x inputs: views."""
        matrices = self.matrices(tensor)
        return [matrices] if self.experts is None else list(matrices)

    def rewrite(self, change: Callable[..., torch.Tensor], *beside: Sequence[Any]) -> None:
        """Put `change(matrix)` in the place of every map's matrix (outputs x inputs), in float32.

        Each sequence of `beside` has an item a map, which `change` gets too.
        """

        def changed(whole: torch.Tensor) -> torch.Tensor:
            after = torch.empty_like(whole)
            for place, *matrices in zip(self.each(after), self.each(whole), *beside, strict=True):
                place.copy_(change(*matrices))
            return after

        rewrite(self.weight, changed)


@dataclass(frozen=True)
class HiddenUnits:
    """The hidden units of an MLP, or of all experts of one kind: what they read by and what they write by."""

    up: list[LinearMap]
    """each has one or more rows a unit"""
    down: LinearMap
    """has one column a unit"""

    @property
    def count(self) -> int:
        """How many units each MLP has."""
        return int(self.down.matrices(self.down.weight.detach()).shape[-1])

    def by_unit(self, up: LinearMap, rows: torch.Tensor) -> torch.Tensor:
        """What belongs to the rows of `up` (... x rows), as ... x units x rows of a unit."""
        # Gate and up projection in one tensor lie one after the other, or alternate.
        if getattr(up.owner, "is_concatenated", True):
            return rows.reshape(*rows.shape[:-1], -1, self.count).mT
        return rows.reshape(*rows.shape[:-1], self.count, -1)

    def by_row(self, up: LinearMap, units: torch.Tensor) -> torch.Tensor:
        """What belongs to the units (units), once for each of their rows of `up` (rows)."""
        times = up.outputs // self.count
        return units.repeat(times) if getattr(up.owner, "is_concatenated", True) else units.repeat_interleave(times)


def linear_maps(model: PreTrainedModel) -> list[LinearMap]:
    """The linear maps of a model but its output embedding and LoRA's factors, first to last and each once.

    These are the weights of linear layers, of transformers' `Conv1D`, of routers, and the fused weights of experts. Embeddings,
    convolutions, norms and the tables of state-space models are no linear maps here.

    Raises:
        HoldfastError: nothing tells how a tensor of weights is meant, or weights are kept in a quantised type.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    maps: dict[int, LinearMap] = {}
    for name, module in model.named_modules():
        for found in _own(model, name, module) if module is not head else ():
            maps.setdefault(id(found.weight), found)  # layers may share a weight
    for found in maps.values():
        if found.weight.dtype not in _PLAIN_TYPES:
            raise HoldfastError(
                f"{found.name} of a {type(model).__name__} is kept as {str(found.weight.dtype).removeprefix('torch.')}; save "
                "the model with dequantised weights"
            )
    return list(maps.values())


def residual_writers(model: PreTrainedModel, chosen: Sequence[int] | None = None) -> list[list[LinearMap]]:
    """The linear maps that write into the residual stream, layer by layer: of attention or its substitute, MLP, and experts.

    Raises:
        HoldfastError: as `decoder_layers` and `linear_maps`, or a part of a layer has no such map by name and size.
    """
    return [_written(layer, _parts(model, layer)) for layer in decoder_layers(model, chosen)]


def mlp_writers(model: PreTrainedModel, chosen: Sequence[int] | None = None) -> list[list[LinearMap]]:
    """The linear maps with which each layer's MLP and its experts write into the residual stream.

    Raises:
        HoldfastError: as `residual_writers` of the MLP, or a layer has no MLP by name and no linear layers of its own.
    """
    return [_written(layer, _mlp_parts(model, layer)) for layer in decoder_layers(model, chosen)]


def mlp_maps(model: PreTrainedModel, chosen: Sequence[int] | None = None) -> list[LinearMap]:
    """The linear maps of each layer's MLP and its experts, first layer to last, without routers.

    Raises:
        HoldfastError: as `mlp_writers`.
    """
    parts = [part for layer in decoder_layers(model, chosen) for part in _mlp_parts(model, layer)]
    maps = {id(linear.weight): linear for part in parts for linear in part.maps if not _routes(linear)}
    return list(maps.values())


def hidden_units(model: PreTrainedModel) -> list[HiddenUnits]:
    """The hidden units of every MLP, and of all experts, first layer to last.

    Raises:
        HoldfastError: as `mlp_writers`, or an MLP is not made of projections up and one down.
    """
    found = []
    for layer in decoder_layers(model):
        parts = _mlp_parts(model, layer)
        writers, holders = _written(layer, parts), dict[str, list[LinearMap]]()
        for linear in (linear for part in parts for linear in part.maps):
            if not (_routes(linear) or linear.outputs == 1):  # a gate of one output weighs a shared expert
                holders.setdefault(linear.name.removesuffix(".weight").rpartition(".")[0], []).append(linear)
        for maps in holders.values():
            down = [linear for linear in maps if linear in writers]
            up = [linear for linear in maps if linear not in writers]
            if not up or len(down) != 1 or any(one.outputs % HiddenUnits(up, down[0]).count for one in up):
                raise HoldfastError(
                    f"the MLP of a layer of kind {type(layer).__name__} is not made of projections up and one down, which this "
                    "needs"
                )
            found.append(HiddenUnits(up, down[0]))
    return found


@dataclass(frozen=True)
class _Part:
    """A part of a layer: attention or its substitute, an MLP. The layer's own linear layers are the part without a name."""

    name: str
    maps: list[LinearMap]
    writers: list[LinearMap]


def _parts(model: PreTrainedModel, layer: nn.Module) -> list[_Part]:
    """The parts of a layer that hold linear maps."""
    width = model.config.get_text_config().hidden_size
    place = next(name for name, module in model.named_modules() if module is layer)
    # A norm with maps inside scales what is read and writes nothing.
    norms = {name for name, part in layer.named_children() if _is_norm(part)}
    parts: dict[str, list[LinearMap]] = {}
    for name, module in layer.named_modules():
        part, _, inner = plain_name(name).partition(".")
        if part not in norms:
            maps = _own(model, f"{place}.{name}" if name else place, module)
            parts.setdefault(part if inner or not _is_layer(module) else "", []).extend(maps)

    def writes(found: LinearMap) -> bool:
        return _name_of(found) in _WRITERS and found.outputs == width and not _routes(found)

    return [_Part(name, maps, list(filter(writes, maps))) for name, maps in parts.items() if maps]


def _mlp_parts(model: PreTrainedModel, layer: nn.Module) -> list[_Part]:
    parts = _parts(model, layer)
    found = [part for part in parts if _is_mlp(part.name)] or [part for part in parts if not part.name]
    if not found:
        raise _no_mlp(layer)
    return found


def _written(layer: nn.Module, parts: Sequence[_Part]) -> list[LinearMap]:
    """The writers of some parts of a layer, of which each has one."""
    for part in parts:
        if not part.writers:
            raise HoldfastError(
                f"nothing tells what {part.name or 'the linear layers'} of a {type(layer).__name__} writes into the residual "
                "stream, which this needs"
            )
    return [writer for part in parts for writer in part.writers]


def _own(model: PreTrainedModel, name: str, module: nn.Module) -> list[LinearMap]:
    """The linear maps of one module itself, without those of its parts."""
    if "lora_" in name or isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
        return []
    name = plain_name(name)
    if _is_layer(module):
        return [LinearMap(f"{name}.weight", module, "weight", transposed=isinstance(module, Conv1D))]
    found = []
    for parameter, weight in module.named_parameters(recurse=False):
        experts = len(weight) if weight.ndim == 3 else None
        if parameter in ("w1", "v1", "w2"):  # DBRX has its experts one below the other
            experts = getattr(module, "moe_num_experts", None)
        if parameter in _EXPERTS and weight.ndim == 3:
            transposed = _inputs_first(model, f"{name}.{parameter}", module, weight)
        elif parameter in _OUTPUTS_FIRST | _INPUTS_FIRST and weight.ndim in (2, 3):
            transposed = parameter in _INPUTS_FIRST
        elif weight.ndim > 2 and min(weight.shape) > 1 and parameter != "A_log":
            raise HoldfastError(
                f"nothing tells what {name}.{parameter} of a {type(model).__name__} is, so its linear maps are not known"
            )
        else:
            continue
        found.append(LinearMap(f"{name}.{parameter}", module, parameter, transposed, experts))
    return found


def _inputs_first(model: PreTrainedModel, name: str, owner: nn.Module, weight: nn.Parameter) -> bool:
    """Whether the fused weight of experts is experts x inputs x outputs."""
    if (declared := getattr(owner, "is_transposed", None)) is not None:
        return bool(declared)
    width = model.config.get_text_config().hidden_size
    sizes = tuple(weight.shape[1:])
    if sizes.count(width) != 1:
        raise HoldfastError(
            f"nothing tells whether {name} of a {type(model).__name__} has its inputs or its outputs first"
        )
    return (sizes[1] == width) is name.endswith("down_proj")


def plain_name(name: str) -> str:
    """A name as it is without LoRA, which puts what it wraps one or more levels deeper."""
    return name.replace(".base_layer", "")


def _name_of(found: LinearMap) -> str:
    """What a map is called where it is used: its module's name, or the tensor's name where a module has several."""
    owner, _, parameter = found.name.rpartition(".")
    return owner.rpartition(".")[-1] if parameter == "weight" else parameter


def _routes(found: LinearMap) -> bool:
    """Whether the map is a router's, whose scores choose experts."""
    return not {"gate", "router"}.isdisjoint(found.name.split("."))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_norm(part: nn.Module) -> bool:
    kind = type(part).__name__.lower()
    return kind.endswith("norm") and "att" not in kind  # DBRX has norms and attention in one part


def _is_mlp(name: str) -> bool:
    return any(part in name.lower() for part in ("mlp", "feed_forward", "ffn", "moe"))


def _no_mlp(layer: nn.Module) -> HoldfastError:
    return HoldfastError(f"a layer of kind {type(layer).__name__} has no MLP by name, which this needs")


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the residual stream and the output embedding."""
    norms = {name: part for name, part in decoder(model).named_children() if "norm" in type(part).__name__.lower()}
    return norms.get("norm", [*norms.values(), torch.nn.Identity()][max(len(norms) - 1, 0)])


def as_attacker(model: torch.nn.Module) -> Callable[[bool], None]:
    """Put a model into evaluation mode for good, and return a switch of the dropout in the attacker's own adapters.

    An attacker trains the function that is measured and published. Whatever a model does in training mode alone (dropout in
    attention, residuals and embeddings, dropped layers, noise, a `forward` that asks `self.training`) is the defender's
    choice, and a line in a config would keep every attack from learning. Gradients do not depend on the mode.
    """
    from peft.tuners.lora import LoraLayer

    model.train(False)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    namespaces = [vars(module) for layer in layers for module in layer.lora_dropout.modules()]

    def switch(training: bool) -> None:
        for attributes in namespaces:
            attributes["training"] = training

    return switch
