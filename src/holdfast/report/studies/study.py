"""The input of a study's report: plain values and the folders of its campaigns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.report.blocks import Chapter, bullets
from holdfast.report.render import render


@dataclass(frozen=True, kw_only=True)
class Method:
    """One model that each world has: a safeguard, or a control."""

    label: str
    role: str = "defended"
    stages: tuple[str, ...] = ()
    """empty for a control"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """what the trials chose in place of the preset's"""
    costs: Mapping[int, float] = field(default_factory=dict)
    """world -> FLOPs of the method's stages over those of the undefended model's pretraining, both counted"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of domain."""

    kind: str
    suite: str
    attacks: int
    """how many the suite has"""
    methods: tuple[Method, ...]
    """controls included, in the order of the columns"""
    campaigns: Mapping[int, Path]
    """world -> the folder of its records"""
    tuning_attacks: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    """labels of methods that a larger study has"""

    def role(self, role: str) -> list[str]:
        """Labels of the methods of a role."""
        return [method.label for method in self.methods if method.role == role]

    @property
    def worlds(self) -> str:
        """The worlds, listed."""
        return ", ".join(map(str, self.campaigns))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that was run."""

    title: str
    command: str
    parts: tuple[Part, ...]
    tuning_world: int | None
    trials: int
    """of each method, or of each family on each target"""
    seeds: tuple[int, ...]
    """of the attacks"""
    seconds: float
    """wall time of all runs"""
    workers: int


def markdown(study: Study, chapters: Sequence[Chapter]) -> str:
    """The chapters as a page, with the cost of the study at the end."""
    spent = f"Wall time: {study.seconds / 60:.0f} minutes with {study.workers} processes, without what the cache already held."
    last = Chapter(key="time", title="What it took", blocks=(bullets(spent),))
    return render("study.md.j2", title=study.title, command=study.command, chapters=(*chapters, last))


def settings(values: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{n}={v:.2g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items())
