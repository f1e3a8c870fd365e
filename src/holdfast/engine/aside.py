"""What waits on another device until it is needed: `--offload`.

A device holds what the inner loop of a safeguard needs; the host holds what only the outer loop needs. The host computes
nothing: a tensor comes to the device for its update and goes back, so the numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.optimizers import Optimizer, published_point, training_point


class AsideOptimizer:
    """An optimizer whose states wait on `device`; its weights are updated one after the other, each with its states beside it."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: str) -> None:
        """`optimizer` updates every weight by itself, and has one group."""
        self._optimizer, self._device = optimizer, device
        carry(optimizer.state, device)  # some begin with a state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def step(self) -> None:
        self._one_by_one(lambda optimizer: optimizer.step())

    def train(self) -> None:
        self._one_by_one(training_point)

    def eval(self) -> None:
        self._one_by_one(published_point)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer, so that a run goes on with its states on another device."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self._optimizer.load_state_dict(state_dict)
        carry(self._optimizer.state, self._device)

    def _one_by_one(self, change: Callable[[Optimizer], Any]) -> None:
        [group] = self._optimizer.param_groups
        # A schedule-free optimizer counts its steps in the group, once for all weights.
        before, states = dict(group), self._optimizer.state
        try:
            for weight in before["params"]:
                group.update(before, params=[weight])
                carry({weight: states[weight]} if weight in states else {}, weight.device)
                change(self._optimizer)
                carry({weight: states[weight]} if weight in states else {}, self._device)
        finally:
            group["params"] = before["params"]


def carry(states: Mapping[Any, dict[str, Any]], device: str | torch.device) -> None:
    """Put the states of an optimizer's weights on a device; a single number stays where it is."""
    for state in states.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                state[name] = value.to(device)


def send(model: nn.Module, device: str | torch.device) -> None:
    """Put a model that is only read on a device."""
    model.to(device)


@contextmanager
def lent(model: PreTrainedModel | None, beside: nn.Module) -> Iterator[None]:
    """Within the block a model is read on the device of another one; each of its layers is there for its own turn alone."""
    if model is None:
        yield
        return
    home, device = (next(each.parameters()).device for each in (model, beside))
    if home == device:
        yield
        return
    layers = decoder_layers(model)
    for module in _outside(model, layers):
        module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]
    turns = [layer.register_forward_pre_hook(lambda layer, _: send(layer, device)) for layer in layers]
    turns += [layer.register_forward_hook(lambda layer, *_: send(layer, home)) for layer in layers]
    try:
        yield
    finally:
        for turn in turns:
            turn.remove()
        send(model, home)


def _outside(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The modules that belong to none of the layers."""
    inside = {part for layer in layers for part in layer.modules()}
    return (module for module in model.modules() if module not in inside)
