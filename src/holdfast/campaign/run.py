"""Run a campaign: its cells as jobs, its plan, one process a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.campaign.all_ranks import run_on_all_ranks
from holdfast.campaign.cell import is_done, record_failure, run_cell, state_path
from holdfast.campaign.cells import (
    PROTOCOL,
    Campaign,
    Cell,
    Model,
    asked_by,
    check_positions,
    untouched_undefended,
)
from holdfast.campaign.examining import examine
from holdfast.core.domain import Domain
from holdfast.core.files import claimed, clear_temporaries, digest, environment, forget_digests
from holdfast.core.locks import only_one
from holdfast.core.losses import LOSSES, POINTS, read_lines, traces
from holdfast.core.presets import describe
from holdfast.core.processes import started_by_torchrun
from holdfast.core.reading import excerpt
from holdfast.core.records import PLAN, CampaignPlan, CellResult, cell_path
from holdfast.core.reuse import say_reused
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.jobs.run import run_jobs


def run_campaign(
    campaign: Campaign,
    out: Path | str,
    workers: Workers = 2,
    *,
    title: str = "",
    suite: str = "",
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    **details: Any,
) -> list[Outcome]:
    """Run the cells that have no record, record the failures, and write the plan with `details`.

    Args:
        campaign: the cells.
        out: the folder.
        workers: processes of this machine at a time, or an executor.
        title: of the report; by default it names the models under test.
        suite: what the attacks are called together; by default their number and a hash of their settings.
        command: for the record.
        on_progress: called with how the cells stand.
        details: for the record.

    Returns:
        How each cell's job ended.

    Raises:
        HoldfastError: another process runs a campaign in the same folder.
    """
    folder = Path(out)
    tested = [model.label for model in campaign.models if model.role == "defended"]
    with only_one(folder):
        clear_temporaries(folder)
        return run_held(
            campaign, folder, workers,
            title=title or f"Attacks on {', '.join(tested or [model.label for model in campaign.models])}",
            suite=suite or called_by_content(dict(campaign.attacks)),
            command=command, on_progress=on_progress, **details,
        )  # fmt: skip


def called_by_content(attacks: Mapping[str, Attack]) -> str:
    """The name of attacks that are no suite: two of one name are the same attacks."""
    count = "1 attack" if len(attacks) == 1 else f"{len(attacks)} attacks"
    return f"{count} ({digest({label: describe(attack) for label, attack in attacks.items()})[:6]})"


def run_held(
    campaign: Campaign,
    out: Path,
    workers: Workers,
    *,
    title: str,
    suite: str,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    after: Campaign | None = None,
    **details: Any,
) -> list[Outcome]:
    """As `run_campaign`, in a folder that this process holds.

    Args:
        campaign: to be run.
        out: the folder.
        workers: processes of this machine at a time, or an executor.
        title: of the campaign.
        suite: its attacks, in a name.
        command: for the record.
        on_progress: called several times a second.
        after: the campaign that this run has just put into the folder; its cells are not told of as reused.
        details: for the plan.
    """
    forget_digests()  # files may have changed since they were hashed for another run
    cells = list(campaign.cells())
    ids = {cell.name: cell.id for cell in cells}

    def record(outcome: Outcome) -> None:
        if outcome.error is not None:
            record_failure(outcome.job.arguments["cell"], out, outcome.error, outcome.seconds)

    write_plan(campaign, out, list(ids.values()), title=title, suite=suite, command=command, **details)
    done = {cell.name for cell in cells if is_done(cell, ids[cell.name], out)}
    pending = [cell for cell in cells if cell.name not in done]
    just_run = {cell.id for cell in after.cells()} if after else set()
    if reused := sum(ids[name] not in just_run for name in done):
        say_reused(f"{reused} of {len(cells)} cells, recorded in {out}")
    for name in done:  # a kill came between its record and the end of its state
        state_path(out, ids[name]).unlink(missing_ok=True)
    jobs = cell_jobs(pending, out, untouched_undefended(cells))
    execute = run_on_all_ranks if started_by_torchrun() else run_jobs
    return list(execute(jobs, workers, record, on_progress).values())


@contextmanager
def claimed_campaign(campaign: Campaign, out: Path, title: str) -> Iterator[None]:
    """Hold a folder that is new, empty or of the campaign of that title, whose plan is its marker.

    Raises:
        HoldfastError: the folder holds something else, is one of the inputs, or another process works in it.
    """
    with claimed(out, PLAN, campaign.domain, *(Path(model.path) for model in campaign.models)) as known:
        if known and (there := CampaignPlan.read(out).title) != title:
            raise HoldfastError(f"{out} holds another run, {excerpt(there)}; give another --out")
        yield


def check_campaign(campaign: Campaign) -> None:
    """Read a campaign's input early, so that the campaign does not fail in its last hour.

    Raises:
        HoldfastError: something that an attack or an evaluation reads is missing or malformed, or a model cannot be loaded.
    """
    campaign.check()
    domain, remote = Domain.open(campaign.domain), campaign.options.trust_remote_code
    along, probes = campaign.evaluations()
    worn = [asked_by(attack, along, domain) for _, attack in campaign.attacks if attack.disguise is not None]
    for path in dict.fromkeys(
        (*(model.path for model in campaign.models), *([campaign.base] if campaign.base else []))
    ):
        Checkpoint(path).check(remote, domain.max_length)
        for evaluations in (along, probes, *worn):
            check_positions(Checkpoint(path), domain, evaluations, remote)
    examine(campaign)


def cell_jobs(
    cells: Sequence[Cell],
    out: Path,
    control: Cell | None,
    after: Mapping[str, tuple[Job, ...]] | None = None,
    title: str = "",
    typical: float | None = None,
) -> list[Job]:
    """A job a cell: untouched models first, then long jobs before short ones. No job waits for a probe.

    Args:
        cells: to be run.
        out: the campaign's folder.
        control: the cell of the undefended model as it is, which tells where a breach begins.
        after: by model label, the jobs that make the model.
        title: stands before the names of the jobs.
        typical: seconds that an attack takes on one core, about; None: as on the testbed.
    """
    attacks = [_seconds(cell) for cell in cells if cell.attack is not None]
    scale = typical / fmean(attacks) if typical and attacks else 1.0

    def size(cell: Cell) -> float:
        scaled = scale * _seconds(cell)
        return min(scaled, typical / 3) if typical and cell.attack is None else scaled

    def job(cell: Cell, *needs: Job, compares: bool = False) -> Job:
        return Job(
            name=f"{title}{cell.name}",
            call=run_cell,
            arguments={"cell": cell, "out": out, "undefended": control if compares else None},
            after=(*(after or {}).get(cell.model.label, ()), *needs),
            size=size(cell),
        )

    first = {cell.name: job(cell) for cell in cells if cell.attack is None and not cell.probe}
    needs = [first[control.name]] if control is not None and control.name in first else []
    rest = []
    for cell in cells:
        if cell.name not in first:
            # The other controls need not wait to hear where a breach begins.
            compares = cell.attack is not None and cell.model.role in ("defended", "peer", "reference")
            rest.append(job(cell, *(needs if compares else ()), compares=compares))
    return [*first.values(), *sorted(rest, key=lambda job: -job.size)]


def write_plan(
    campaign: Campaign, out: Path, ids: Sequence[str], *, title: str, suite: str, command: str, **details: Any
) -> None:
    """Write `campaign.json`: the cells, by their identities in their order, and the sources of the models."""
    _rename(campaign, out, ids)
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
            "precision": campaign.options.precision,
            "data": asdict(examine(campaign)),
            "models": {model.label: _provenance(model) for model in campaign.models},
            "base": Checkpoint(campaign.base).digest if campaign.base else "",
            "left_out": list(campaign.left_out),
            "without_control": [name for name, attack in campaign.attacks if not attack.control],
            **details,
        },
    ).write(out)


def _rename(campaign: Campaign, out: Path, ids: Sequence[str]) -> None:
    """Give records of an earlier run the names that their models and attacks have now: a name is no part of an identity."""
    names: dict[str, list[tuple[str, str]]] = {}
    for cell, key in zip(campaign.cells(), ids, strict=True):
        names.setdefault(key, []).append((cell.model.label, cell.attack_name))
    for key, now in names.items():
        if not (path := cell_path(out, key)).is_file():
            continue
        recorded = CellResult.read(path)
        if (recorded.model, recorded.attack) not in now:
            model, attack = now[0]
            replace(recorded, model=model, attack=attack).write(path)


def _provenance(model: Model) -> dict[str, Any]:
    checkpoint = Checkpoint(model.path)
    card = checkpoint.card
    return {
        "path": str(checkpoint.folder.resolve()),
        "digest": checkpoint.digest,
        "stages": [stage["preset"] for stage in card.get("stages", [])],
        "base": card.get("base", {}).get("digest", ""),
        # A testbed's model says itself how long it took; a safeguarded one is the sum of its stages.
        **{
            cost: sum(made[cost] for made in card.get("stages", [card]) if cost in made)
            for cost in ("seconds", "tokens", "flops")
        },
        "seed": card.get("seed"),
        "losses": [asdict(trace) for trace in traces(read_lines(checkpoint.folder / LOSSES), POINTS)],
    }


def _seconds(cell: Cell) -> float:
    """Roughly how long a cell takes on the testbed: by rows trained on, with a fixed part for each step and each measuring."""
    if cell.probe:
        return 3.0
    measuring = 0.2 * len(cell.milestones) + 0.1 * len(cell.hazard_milestones)
    if cell.attack is None:
        return 1.5
    return cell.attack.max_steps * (0.5 + cell.attack.rows_per_step / 32) / 60 + measuring
