"""The observer that shows a run in tracking tools: losses, norms of gradients and updates, scores as they are measured.

The observer only reads, draws no random number and ends no run: a tool that fails is left out from there on, with one word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.core.reading import line
from holdfast.engine.costs import gradient_norm, norm_over_ranks
from holdfast.engine.ranks import is_first
from holdfast.engine.session import Session
from holdfast.engine.sharded import local, reshard
from holdfast.engine.trackers import Tracked, Tracker, open_tracker
from holdfast.engine.walk import Steps

_LOGGER = logging.getLogger("holdfast")

_SAMPLED = 2**20
"""weights, of all, that the size of an update is taken from: a copy of all would cost a model's memory"""

_failed: set[str] = set()
"""tools that failed in this process: the next run does not try them again"""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Show a run in the tools that the user named. It stands after what measures, so that it sees an update's scores."""

    tools: Sequence[str]
    run: Tracked
    folder: Path
    """where tools that write files write them"""
    scores: Callable[[int], Mapping[str, float]]
    """what was measured at a step, by name; empty where nothing was"""

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        start, sizes = session.run.start, UpdateSize(session.model)
        with self._opened(start) as log:
            seen = False
            for step, losses in steps:
                if start == 0 and not seen:
                    log(0, self.scores(0))
                seen = True
                log(step, {**_losses(losses), **_norms(session.model, sizes), **self.scores(step)})
                yield step, losses
            if start == 0 and not seen:
                log(0, self.scores(0))

    @contextmanager
    def _opened(self, start: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        trackers: dict[str, Tracker] = {}

        def safely(tool: str, act: Callable[[], Any]) -> Any:
            try:
                return act()
            except (Exception, SystemExit) as error:  # whatever a tool raises, the run goes on
                trackers.pop(tool, None)
                if tool not in _failed:
                    _failed.add(tool)
                    reason = line(str(error)) or type(error).__name__
                    _LOGGER.warning("%s failed and is left out from here on; the run goes on: %s", tool, reason)
                return None

        for tool in self.tools if is_first() else ():
            opened = (
                None if tool in _failed else safely(tool, partial(open_tracker, tool, self.run, self.folder, start))
            )
            if opened is not None:
                trackers[tool] = opened

        def log(step: int, figures: Mapping[str, float]) -> None:
            named = {re.sub(r"[^\w./ -]", "_", name): value for name, value in figures.items()}
            for tool, tracker in list(trackers.items()) if named else ():
                safely(tool, partial(tracker.log, step, named))

        try:
            yield log
        finally:
            for tool, tracker in list(trackers.items()):
                safely(tool, tracker.close)


class UpdateSize:
    """How far the last update moved the weights, relative to their norm, on a sample spread evenly over all weights."""

    def __init__(self, model: nn.Module) -> None:
        self._before = _sample(model)

    def __call__(self, model: nn.Module) -> float | None:
        """The size of the update since the last call; None where the model has other weights than then."""
        before, self._before = self._before, _sample(model)
        if before.shape != self._before.shape:
            return None
        norm, moved = (norm_over_ranks(float(part.norm())) for part in (before, self._before - before))
        return moved / norm if norm else None


def _sample(model: nn.Module) -> torch.Tensor:
    reshard(model)
    weights = [local(weight.detach()) for weight in model.parameters() if weight.is_floating_point()]
    stride = max(sum(weight.numel() for weight in weights) // _SAMPLED, 1)
    return torch.cat([weight.reshape(-1)[::stride].float().cpu() for weight in weights])


def _losses(losses: Any) -> dict[str, float]:
    if isinstance(losses, Mapping):
        return {f"loss/{name}": float(value) for name, value in losses.items()}
    return {"loss/attacker": float(losses)}


def _norms(model: nn.Module, sizes: UpdateSize) -> dict[str, float]:
    found = {"norm/gradient": gradient_norm(model), "norm/relative update": sizes(model)}
    return {name: value for name, value in found.items() if value is not None}
