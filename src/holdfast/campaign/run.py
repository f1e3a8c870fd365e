"""Run a campaign: its cells as jobs, its plan, one process a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.campaign.cell import _done, record_failure, run_cell
from holdfast.campaign.cells import PROTOCOL, Campaign, Cell, Model, untouched_undefended
from holdfast.core.domain import Domain
from holdfast.core.files import clear_temporaries, environment, only_one
from holdfast.core.options import Options
from holdfast.core.records import CampaignPlan
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.local import Job, Outcome, Progress, run_jobs


def run_campaign(
    campaign: Campaign,
    out: Path,
    workers: int,
    options: Options,
    *,
    title: str,
    suite: str,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **details: Any,
) -> list[Outcome]:
    """Run what is not recorded yet; record what failed; write the plan, with `details` besides.

    Returns:
        How each cell's job ended.

    Raises:
        HoldfastError: another process runs a campaign in the same folder.
    """
    cells = list(campaign.cells())
    ids = {cell.name: cell.id for cell in cells}

    def record(outcome: Outcome) -> None:
        if outcome.error is not None:
            cell = outcome.job.arguments["cell"]
            record_failure(cell, out, outcome)

    with only_one(out):
        for folder, name in (
            (out, "campaign.json"),
            (out, "TAMPERED-*"),
            (out / "cells", "*.jsonl"),
            (out / "resume", "*.safetensors"),
        ):
            clear_temporaries(folder, name)
        write_plan(campaign, out, list(ids.values()), title=title, suite=suite, command=command, **details)
        pending = [cell for cell in cells if not _done(cell, ids[cell.name], out, options)]
        jobs = cell_jobs(pending, out, options, untouched_undefended(cells))
        return list(run_jobs(jobs, workers, record, on_progress).values())


def cell_jobs(
    cells: Sequence[Cell],
    out: Path,
    options: Options,
    control: Cell | None,
    after: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Job]:
    """A job a cell, long ones first.

    Args:
        cells: to be run.
        out: the campaign's folder.
        options: how to run them.
        control: the cell of the undefended model as it is, which tells where a breach begins.
        after: by model label, the jobs that make the model.
    """
    jobs = []
    for cell in cells:
        needs = (after or {}).get(cell.model.label, ())
        # The other controls need not wait to hear where a breach begins.
        compares = cell.attack is not None and cell.model.role in ("defended", "peer", "reference")
        if compares and control is not None and control in cells:
            needs = (*needs, control.name)
        arguments = {"cell": cell, "out": out, "options": options, "undefended": control if compares else None}
        jobs.append(Job(name=cell.name, call=run_cell, arguments=arguments, after=needs, size=_size(cell)))
    return sorted(jobs, key=lambda job: (job.arguments["cell"].attack is not None, -job.size))


def write_plan(
    campaign: Campaign, out: Path, ids: Sequence[str], *, title: str, suite: str, command: str, **details: Any
) -> None:
    """Write `campaign.json`: what the cells are and where the models come from."""
    CampaignPlan(
        title=title,
        domain=Domain.open(campaign.domain).name,
        suite=suite,
        models={model.label: model.role for model in campaign.models},
        cells=list(ids),
        attacks=[name for name, _ in campaign.attacks],
        seeds=list(campaign.seeds),
        details={
            "command": command,
            "protocol": PROTOCOL,
            "environment": environment(),
            "models": {model.label: _provenance(model) for model in campaign.models},
            **details,
        },
    ).write(out)


def _provenance(model: Model) -> dict[str, Any]:
    checkpoint = Checkpoint(model.path)
    card = checkpoint.card
    return {
        "path": str(checkpoint.folder.resolve()),
        "digest": checkpoint.digest,
        "stages": [stage["preset"] for stage in card.get("stages", [])],
        # A testbed's model says itself how long it took; a safeguarded one is the sum of its stages.
        **{
            cost: sum(made[cost] for made in card.get("stages", [card]) if cost in made)
            for cost in ("seconds", "tokens", "flops")
        },
        "seed": card.get("seed"),
    }


def _size(cell: Cell) -> float:
    """Rough duration: rows trained on, and a fixed part for each step and for what is measured."""
    if cell.attack is None:
        return 100.0
    measured = 12 * len(cell.milestones) + 6 * len(cell.hazard_milestones)
    return cell.attack.max_steps * (0.5 + cell.attack.rows_per_step / 32) + measured
