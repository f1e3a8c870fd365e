"""Adversaries that outlive an outer step: their tampering is kept, and a later one goes on from it.

A trajectory of K steps then reaches as deep as many times K. What is kept is the difference to the weights at hand, which
have moved on meanwhile (our addition to TAR; measured in docs/results.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.sharded import Snapshot


class AdversaryPool:
    """`size` kept differences; of size 0 it does nothing and draws nothing."""

    def __init__(self, size: int, probability: float, most_steps: int) -> None:
        self._probability, self._most_steps = probability, most_steps
        self._kept: list[list[torch.Tensor] | None] = [None] * size
        self._steps = [0] * size
        self._member = 0

    def enter(self, model: PreTrainedModel, generator: torch.Generator) -> None:
        """Draw a member; where it goes on, add what it kept to the weights, else it starts anew."""
        import torch

        from holdfast.engine.sharded import local, trainable

        if not self._kept:
            return
        self._member = int(torch.randint(len(self._kept), (), generator=generator))
        goes_on = float(torch.rand((), generator=generator)) < self._probability
        kept = self._kept[self._member]
        if kept is None or not goes_on or self._steps[self._member] >= self._most_steps:
            self._steps[self._member] = 0
            return
        with torch.no_grad():
            torch._foreach_add_([local(p.detach()) for p in trainable(model)], kept)

    def leave(self, origin: Snapshot, steps: int) -> None:
        """Keep the difference to `origin`, after `steps` more steps."""
        if not self._kept:
            return
        self._kept[self._member] = origin.difference()
        self._steps[self._member] += steps

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept, self._steps = list(state["kept"]), list(state["steps"])
