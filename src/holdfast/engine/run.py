"""The run that a plug-in gets: seeds, the models before it, and the state from which a resumed run goes on."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.aside import send
from holdfast.engine.ranks import agreed
from holdfast.engine.sharded import assign
from holdfast.engine.state import DamagedState, read_state, write_state

_LOGGER = logging.getLogger("holdfast")


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Run:
    """The seeds, models and state that a plug-in's `steps` gets.

    Attributes:
        seed: for the plug-in's own streams.
        generator: an equally seeded CPU generator on every rank; take every random decision from it.
        start: how many steps were done before a resume; count on from there.
        micro_batch: rows that go through the model at once, for `Batch.split`; None: the whole batch.
        aside: the device for what an inner loop does not need; None: where the weights are. A run inside this one has none.
        seconds_before: what earlier processes spent on it, up to the state that it goes on from.
    """

    def __init__(
        self,
        seed: int,
        load_base: Callable[..., PreTrainedModel] | None = None,
        load_initial: Callable[[], PreTrainedModel] | None = None,
        micro_batch: int | None = None,
        aside: str | None = None,
    ) -> None:
        self.seed = seed
        self.micro_batch = micro_batch
        self.aside = aside
        self.generator = torch.Generator().manual_seed(seed)
        self.start = 0
        self.seconds_before = 0.0
        self._begun = time.monotonic()
        self._load_base = load_base
        self._base: PreTrainedModel | None = None
        self._load_initial = load_initial
        self._initial: PreTrainedModel | None = None
        self._tracked: dict[str, Stateful] = {}
        self._resumed: dict[str, Any] = {}
        self._random = torch.get_rng_state()

    @property
    def base(self) -> PreTrainedModel:
        """The model before the first stage, frozen; loaded at the first use.

        Raises:
            HoldfastError: no source of the model is known.
        """
        if self._base is None:
            if self._load_base is None:
                raise HoldfastError("this needs the original model, before any safeguard; name it with --base")
            self._base = self._load_base().requires_grad_(False).train(False)
        return self._base

    @property
    def base_aside(self) -> PreTrainedModel:
        """`base` on the device for what an inner loop does not need, on which it is loaded if this is the first use."""
        if self.aside is None:
            return self.base
        if self._base is None and self._load_base is not None:
            self._base = self._load_base(self.aside).requires_grad_(False).train(False)
        send(self.base, self.aside)
        return self.base

    @property
    def initial(self) -> PreTrainedModel:
        """The model before this run, frozen; loaded at the first use. Its default is `base`."""
        if self._initial is None:
            if self._load_initial is None:
                return self.base
            self._initial = self._load_initial().requires_grad_(False).train(False)
        return self._initial

    @property
    def seconds(self) -> float:
        """The seconds that the run has taken so far, over all processes."""
        return self.seconds_before + time.monotonic() - self._begun

    def track(self, **state: Stateful) -> None:
        """Make the driver save and restore `state` with the weights, so that a resumed run is the same run.

        A plug-in calls this before its first update, and after whatever it reads and computes beforehand: a resumed run does
        that again, and an earlier process has counted it.
        """
        for name, tracked in state.items():
            self._tracked[name] = tracked
            if name in self._resumed:
                tracked.load_state_dict(self._resumed[name])
                # Making what is tracked may have drawn random numbers, as fresh factors do.
                torch.set_rng_state(self._random)
        if "meter" in self._tracked and "meter" in self._resumed:
            self._tracked["meter"].load_state_dict(self._resumed["meter"])

    def later(self, steps: int) -> Run:
        """This run from `steps` updates on, for an attack that continues another attack; both runs track the same state."""
        rest = copy.copy(self)
        rest.start = max(self.start - steps, 0)
        if rest.start == 0:  # what was saved belongs to the attack before it
            rest._resumed = {}
        return rest

    def inner(self) -> Run:
        """A run inside this one, with another seed: for an adversary within an outer step."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return Run(seed, lambda: self.base, micro_batch=self.micro_batch)

    def save(self, path: Path, model: nn.Module, step: int, key: str) -> None:
        """Write weights, tracked state and random states to one file, all or nothing, without a copy in memory."""
        state = {
            "model": {name: parameter.detach() for name, parameter in model.named_parameters()},
            "tracked": {name: tracked.state_dict() for name, tracked in self._tracked.items()},
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "step": step,
            "seconds": self.seconds,
        }
        write_state(path, state, key=key)

    def resume(self, path: Path, model: nn.Module, key: str) -> None:
        """Go on from the file at `path`, if the file exists, is whole, and belongs to the run `key`.

        Raises:
            HoldfastError: something else than a file lies there, or another file than where rank 0 runs.
        """
        if not agreed(path.exists()):
            return
        if not agreed(path.is_file()):
            raise HoldfastError(f"{path} is where the state of a run is kept, and no file; move it away")
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        try:
            state, metadata = read_state(path)
            if metadata.get("key") != key:
                return
            if {name: t.shape for name, t in state["model"].items()} != {
                name: p.shape for name, p in parameters.items()
            }:
                raise DamagedState
        except (DamagedState, LookupError, AttributeError, TypeError):
            _LOGGER.warning("the saved state %s is damaged or of another version; its run begins anew", path)
            return
        for name, parameter in parameters.items():
            assign(parameter, state["model"][name])
        self.start = state["step"]
        self.seconds_before = state["seconds"]
        self.generator.set_state(state["generator"])
        self._random = state["torch"]
        torch.set_rng_state(self._random)
        self._resumed = state["tracked"]


def seed_everything(seed: int) -> None:
    """Seed torch's global generator, which dropout and fresh factors draw from, and set what makes CPU runs equal."""
    torch.manual_seed(seed)
    # Denormals cost a run two hundred very slow steps once; they carry no information here.
    torch.set_flush_denormal(True)
