"""How a campaign stands, from its plan and the runs that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from holdfast.core.records import CampaignPlan, CellResult, cell_path, planned
from holdfast.core.types import HoldfastError


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The counts of runs, of one model or of all."""

    planned: int
    finished: int
    diverged: int
    failed: int

    @property
    def left(self) -> int:
        """The runs to go, including failed runs, which are tried again."""
        return self.planned - self.finished - self.diverged


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The standing of a campaign that may still run."""

    title: str
    models: Mapping[str, Standing]
    """of the models of which a run has ended"""
    all: Standing
    seconds: float
    """of work that the ended runs took"""
    seconds_left: float | None
    """of work to go, were the others like them on average; None before any has ended"""
    reasons: tuple[str, ...]
    """why runs failed, each once"""
    command: str
    """that goes on with it"""


def read_progress(folder: Path) -> Progress:
    """How the campaign in a folder stands; a file that is being damaged or written is a run that has not ended.

    Raises:
        HoldfastError: the folder holds no campaign.
    """
    plan = CampaignPlan.read(folder)
    results = []
    for cell in dict.fromkeys(plan.cells):
        path = cell_path(folder, cell)
        if path.is_file():
            try:
                results.append(planned(CellResult.read(path), plan, path))
            except HoldfastError:
                continue
    return progress(plan, results)


def progress(plan: CampaignPlan, results: Sequence[CellResult]) -> Progress:
    """The standing of a campaign, from its plan and the runs that have ended."""
    ended = [result for result in results if result.status != "failed"]
    everything = _standing(len(set(plan.cells)), results)
    command: Any = plan.details.get("command", "")
    return Progress(
        title=plan.title,
        models={
            label: _standing(len(runs), runs)
            for label in dict.fromkeys(result.model for result in results)
            if (runs := [result for result in results if result.model == label])
        },
        all=everything,
        seconds=sum(result.seconds for result in ended),
        seconds_left=everything.left * fmean(result.seconds for result in ended) if ended else None,
        reasons=tuple(dict.fromkeys(result.reason for result in results if result.status == "failed")),
        command=str(command),
    )


def _standing(planned: int, results: Sequence[CellResult]) -> Standing:
    counts = {
        status: sum(result.status == status for result in results) for status in ("finished", "diverged", "failed")
    }
    return Standing(planned=planned, **counts)
