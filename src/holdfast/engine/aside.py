"""What waits on another device until it is needed: `--offload`.

A device holds what the inner loop of a safeguard needs; the host holds what only the outer loop needs. The host computes
nothing: a tensor comes to the device for its update and goes back, so the numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

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
def lent(model: nn.Module | None, beside: nn.Module) -> Iterator[None]:
    """Within the block a model is on the device of another one, and then again where it was."""
    if model is None:
        yield
        return
    home, device = (next(each.parameters()).device for each in (model, beside))
    send(model, device)
    try:
        yield
    finally:
        send(model, home)
