"""Run one cell and write its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from holdfast.campaign.cells import Cell
from holdfast.campaign.exposure import family_in_training, seen_in_training
from holdfast.campaign.kept import check_keepable, keep, kept_folder
from holdfast.campaign.measuring import Measuring
from holdfast.campaign.on_ranks import on_ranks
from holdfast.core.domain import Domain
from holdfast.core.files import digest, environment
from holdfast.core.presets import describe
from holdfast.core.profiling import profile_folder
from holdfast.core.records import CellResult, cell_path
from holdfast.core.reuse import say_reused
from holdfast.core.tracking import tracking_folder
from holdfast.core.types import NonFinite
from holdfast.engine.checkpoint import Checkpoint


def _unseen(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def run_cell(
    cell: Cell,
    out: Path,
    undefended: Cell | None = None,
    on_step: Callable[[int, int], None] = _unseen,
) -> str:
    """Run one cell, unless its record is there already, and write its record; return its identity.

    The processes that share the model all run the cell (`campaign.on_ranks`), and rank 0 writes.

    Args:
        cell: what to run.
        out: the campaign's folder.
        undefended: the cell of the undefended model as it is: half of its hazard above chance is a breach, at which
            everything is measured. None: half of what is possible.
        on_step: called with steps done and steps in all.

    Raises:
        HoldfastError: the attack, the model or the data are refused, or a process that shares the model died.
    """
    return on_ranks(cell.options.ranks, _run_cell, {"on_step": on_step}, cell=cell, out=out, undefended=undefended)


def _run_cell(cell: Cell, out: Path, undefended: Cell | None, on_step: Callable[[int, int], None] = _unseen) -> str:
    from holdfast.engine.costs import Memory, Meter, update
    from holdfast.engine.heap import give_back
    from holdfast.engine.ranks import agreed, check_splits, is_first
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import Observer, Reporting, Resumable, Untouched, walk

    if cell.attack:
        check_splits(cell.attack_name, cell.attack.on_one_device)
    identity = agreed(cell.identity() if is_first() else {})  # it reads every file of the models
    key = digest(identity)[:16]
    if agreed(is_done(cell, key, out)):
        say_reused(cell.name)
        return key
    give_back()  # what the cell before has left in the heap of this worker
    started, memory = time.monotonic(), Memory(cell.options.device)
    checkpoint, domain = Checkpoint(cell.model.path), Domain.open(cell.domain)
    attack, destroyed = cell.attack, cell.model.role == "destroyed"
    session = open_session(
        checkpoint, domain, "attacker", cell.seed, cell.options,
        base=Checkpoint(cell.base) if cell.base else None, tokenizer=cell.words,
        prepare=[*([put_out_of_order] if destroyed else []), *([attack.prepare] if attack else [])],
    )  # fmt: skip
    if attack and cell.options.keep_attacked_weights:
        check_keepable(session.model, cell.attack_name)
    meter = Meter(session.data)
    measuring = Measuring(cell, key, domain, identity, meter, cell_path(out, undefended.id) if undefended else None)
    observers: list[Observer] = [meter, measuring]
    if cell.options.profile and attack:
        from holdfast.engine.profiling import Profiling

        observers.insert(0, Profiling(folder=profile_folder(out), name=f"attack-{key}"))
    if cell.options.track:
        from holdfast.engine.trackers import Tracked
        from holdfast.engine.tracking import Tracking

        # A model's label is the name of a folder of the user's; its role says enough.
        what = cell.probe or cell.attack_name
        run = Tracked(
            name=f"{what} on {cell.model.role}, seed {cell.seed}", key=key, group="attacks",
            config={"attack": what, "model": cell.model.role, "seed": cell.seed},
        )  # fmt: skip
        observers.append(
            Tracking(tools=cell.options.track, run=run, folder=tracking_folder(out), scores=measuring.figures)
        )
    if attack:
        observers.append(Reporting(on_step=on_step, total=attack.max_steps))
    state = state_path(out, key)
    if cell.options.resumable_attacks:
        observers.append(Resumable(path=state, key=key))
    status: Literal["finished", "diverged"] = "finished"
    reason, moved = "", None
    try:
        walk(session, attack or Untouched(), *observers)
        if attack and not destroyed:
            moved = update(session.model, checkpoint.folder)
    except NonFinite as error:
        status, reason = "diverged", str(error)
    if cell.options.keep_attacked_weights and attack and status == "finished":
        keep(session.model, session.tokenizer, cell, key, out)
    first_loss, last_loss = measuring.ends_of_the_loss
    result = CellResult(
        cell=key,
        model=cell.model.label,
        model_digest=identity["model"],
        attack=cell.attack_name,
        attack_config=describe(attack) if attack else {},
        seed=cell.seed,
        status=status,
        reason=reason,
        milestones=sorted({*cell.milestones, *cell.hazard_milestones}),
        losses=measuring.thinned_losses,
        first_loss=first_loss,
        last_loss=last_loss,
        gradient_norms=list(measuring.gradients),
        update_size=moved.size if moved else None,
        moved_share=moved.share if moved else None,
        costs=list(measuring.costs),
        tokens=meter.tokens if attack else None,
        flops=meter.flops if attack else None,
        peak_memory=memory.peak(),
        family=attack.family if attack else "",
        draws=attack.draws if attack else True,
        transfers=attack.transfers if attack else False,
        stopped=measuring.stopped,
        seen_in_training=seen_in_training(checkpoint.card, attack),
        family_in_training=family_in_training(checkpoint.card, attack),
        seconds=round(session.run.seconds_before + time.monotonic() - started, 3),
        evaluation_seconds=round(measuring.seconds, 3),
        identity=identity,
        environment=environment(),
        records=measuring.records,
    )
    if is_first():
        result.write(cell_path(out, key))
        state.unlink(missing_ok=True)
    return key


def state_path(out: Path, key: str) -> Path:
    """Where the state of a resumable cell is kept while it runs."""
    return out / "resume" / f"{key}.safetensors"


def put_out_of_order(model: Any) -> None:
    """Destroy a model in place: the entries of every tensor in a random order, so its statistics stay and its meaning goes."""
    import torch

    from holdfast.engine.sharded import local

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            weights = local(parameter)
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))


def is_done(cell: Cell, key: str, out: Path) -> bool:
    """Whether the cell is done: its record exists, and its attacked weights too where they are to be kept."""
    path = cell_path(out, key)
    status = CellResult.read(path).status if path.is_file() else "failed"
    missing = cell.options.keep_attacked_weights and cell.attack is not None and not kept_folder(out, key).is_dir()
    return status == "diverged" or (status == "finished" and not missing)


def record_failure(cell: Cell, out: Path, reason: str, seconds: float) -> None:
    """Record that a cell's job failed; the cell is run again the next time.

    A record that is there already stays: a worker that dies after it wrote it has lost nothing.

    Args:
        cell: what failed.
        out: the campaign's folder.
        reason: one sentence.
        seconds: how long the job ran.
    """
    key = cell.id
    path = cell_path(out, key)
    if path.is_file() and CellResult.read(path).status != "failed":
        return
    CellResult(
        cell=key,
        model=cell.model.label,
        model_digest=Checkpoint(cell.model.path).digest,
        attack=cell.attack_name,
        attack_config=describe(cell.attack) if cell.attack else {},
        family=cell.attack.family if cell.attack else "",
        seed=cell.seed,
        status="failed",
        reason=reason,
        milestones=list(cell.milestones),
        seconds=round(seconds, 3),
        environment=environment(),
    ).write(path)
