"""A pool of adversaries that persist over outer steps: a later trajectory continues from the end of an earlier one.

A trajectory of K steps then reaches as deep as many times K. The pool keeps the difference to theta, because theta moves between
outer steps (our addition to TAR).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.sharded import Snapshot


class AdversaryPool:
    """Keeps `size` differences of weights; with size 0 the pool does nothing and samples nothing."""

    def __init__(self, size: int, probability: float, most_steps: int) -> None:
        self._probability, self._most_steps = probability, most_steps
        self._kept: list[list[torch.Tensor] | None] = [None] * size
        self._steps = [0] * size
        self._member = 0

    def enter(self, model: PreTrainedModel, generator: torch.Generator) -> None:
        """Sample a member; add its difference to the weights if it continues, else start it anew."""
        import torch

        from holdfast.engine.rounding import shift
        from holdfast.engine.sharded import local, parts, trainable

        if not self._kept:
            return
        self._member = int(torch.randint(len(self._kept), (), generator=generator))
        continues = float(torch.rand((), generator=generator)) < self._probability
        kept = self._kept[self._member]
        if kept is None or not continues or self._steps[self._member] >= self._most_steps:
            self._steps[self._member] = 0
            return
        shift([local(p.detach()) for p in trainable(model)], parts(model, kept))

    def leave(self, origin: Snapshot, steps: int) -> None:
        """Store the difference of the weights to `origin`, after `steps` more steps."""
        if not self._kept:
            return
        self._kept[self._member] = origin.difference()
        self._steps[self._member] += steps

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept, self._steps = list(state["kept"]), list(state["steps"])
