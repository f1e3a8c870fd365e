"""A method that a study compares: stages of safeguards, and the tuned settings of the last stage."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast.campaign.cells import Role
from holdfast.core.presets import pick
from holdfast.safeguards.base import Safeguard

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: the stages, and the tuned settings of the last stage."""

    label: str
    """the row's name, and its model folder's"""
    stages: tuple[str, ...]
    """safeguard presets, in order"""
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """field of the last stage -> values that a trial draws from; empty: nothing is tuned"""
    shorter: Settings = field(default_factory=dict)
    """settings of the last stage in trials only, to save time"""
    settings: Settings = field(default_factory=dict)
    """settings of the last stage always, in place of the preset's"""
    start: str | None = None
    """label of the method whose model this one starts from and takes for the original; None: the undefended model"""
    role: Role = "defended"
    """`reference` for the shallow safeguard that attacks must break"""
    size: float = 30.0
    """seconds it takes to build on one core, for the estimate"""
    seed: int | None = None
    """of its training; None: the world's"""

    def trial(self, index: int) -> dict[str, Any]:
        """Settings of a trial: the preset's own at first, then draws that depend on the method and the number alone.

        Drawn without replacement from all combinations of `space` but the preset's: no trial is spent on settings already tried.
        """
        if index == 0 or not self.space:
            return {}
        _, preset = self.built({})[-1]
        as_it_stands = tuple(getattr(preset, name) for name in self.space)
        combinations = [drawn for drawn in itertools.product(*self.space.values()) if drawn != as_it_stands]
        drawn = random.Random(self.label).sample(combinations, len(combinations))[index - 1]
        return dict(zip(self.space, drawn, strict=True))

    def built(self, settings: Settings) -> tuple[tuple[str, Safeguard], ...]:
        """The stages with settings applied to the last."""
        stages = [(name, pick("holdfast.safeguards", name)) for name in self.stages]
        name, last = stages[-1]
        return (*stages[:-1], (name, replace(last, **{**self.settings, **settings})))
