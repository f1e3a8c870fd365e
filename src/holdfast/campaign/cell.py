"""Run one cell and write its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from holdfast.campaign.cells import Cell
from holdfast.campaign.kept import _check_keepable, _keep, _kept
from holdfast.campaign.measuring import _Measured
from holdfast.core.domain import Domain
from holdfast.core.files import digest, environment
from holdfast.core.options import Options
from holdfast.core.presets import describe
from holdfast.core.records import CellResult, cell_path
from holdfast.core.types import NonFinite
from holdfast.engine.checkpoint import Checkpoint, check_finite
from holdfast.engine.session import base_loader
from holdfast.jobs.local import Outcome


def run_cell(
    cell: Cell,
    out: Path,
    options: Options,
    undefended: Cell | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Run one cell, unless its record is there already, and write its record; return its identity.

    Args:
        cell: what to run.
        out: the campaign's folder.
        options: how to run it.
        undefended: the cell of the undefended model as it is: half of its hazard above chance is a breach, at which
            everything is measured. None: half of what is possible.
        on_step: called with steps done and steps in all.
    """
    from holdfast.engine.costs import Memory, Meter, gradient_norm, update_size
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run, seed_everything
    from holdfast.engine.walk import drive

    identity = cell.identity()
    key = digest(identity)[:16]
    path = cell_path(out, key)
    if _done(cell, key, out, options):
        return key
    started, memory = time.monotonic(), Memory(options.device)
    checkpoint, domain = Checkpoint(cell.model.path), Domain.open(cell.domain)
    seed_everything(cell.seed)
    measured = _Measured(cell, key, domain, identity, cell_path(out, undefended.id) if undefended else None)
    status: Literal["finished", "diverged"] = "finished"
    reason, model, tokenizer, meter, moved = "", None, None, None, None
    state = out / "resume" / f"{key}.safetensors"
    try:
        model, tokenizer = checkpoint.load_both(options.device, options.dtype, options.trust_remote_code)
        if cell.model.role == "destroyed":
            put_out_of_order(model)
        run = Run(cell.seed, base_loader(checkpoint, options))
        if cell.attack is not None:
            cell.attack.prepare(model)
            if options.keep_attacked_weights:
                _check_keepable(model, cell.attack_name)
        if options.resumable_attacks:
            run.resume(state, model, key)
        run.track(measured=measured)
        if run.start == 0:
            measured.take(0, model, tokenizer)
        if cell.attack is not None:
            data = Data.attacker(domain, tokenizer, options.device)
            meter = Meter(data)
            run.track(meter=meter)
            steps = meter.walk(cell.attack.steps(model, data, run))
            resumable = state if options.resumable_attacks else None
            for step, loss in drive(steps, model, run, checkpoint=resumable, key=key):
                measured.losses.append(loss)
                if (step - 1) % measured.stride == 0:
                    measured.note_gradient(step, gradient_norm(model))
                if step in cell.milestones or step in cell.hazard_milestones:
                    check_finite(model, f"the weights after step {step}")
                    measured.take(step, model, tokenizer)
                    measured.costs.append((step, meter.tokens, meter.flops))
                on_step(step, cell.attack.max_steps)
                if measured.stops:
                    break
            moved = None if cell.model.role == "destroyed" else update_size(model, checkpoint.folder)
    except NonFinite as error:
        if model is None:
            raise
        status, reason = "diverged", str(error)
    result = measured.result(status, reason, time.monotonic() - started, checkpoint.card)
    result = replace(
        result,
        update_size=moved,
        tokens=meter.tokens if meter else None,
        flops=meter.flops if meter else None,
        peak_memory=memory.peak(),
    )
    if options.keep_attacked_weights and cell.attack is not None and status == "finished":
        assert tokenizer is not None
        _keep(model, tokenizer, cell, key, out)
    result.write(path)
    state.unlink(missing_ok=True)
    return key


def put_out_of_order(model: Any) -> None:
    """Destroy a model in place: the entries of every tensor in a random order, so its statistics stay and its meaning goes."""
    import torch

    from holdfast.engine.sharded import local

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            held = local(parameter)
            order = torch.randperm(held.numel(), generator=generator).to(held.device)
            held.copy_(held.flatten()[order].view_as(held))


def _done(cell: Cell, key: str, out: Path, options: Options) -> bool:
    """Whether nothing is left to do: the record is there, and the attacked weights too where they are to be kept."""
    path = cell_path(out, key)
    status = CellResult.read(path).status if path.is_file() else "failed"
    missing = options.keep_attacked_weights and cell.attack is not None and not _kept(out, key).is_dir()
    return status == "diverged" or (status == "finished" and not missing)


def record_failure(cell: Cell, out: Path, outcome: Outcome) -> None:
    """Record that a cell's job failed; the cell is run again the next time.

    A record that is there already stays: a worker that dies after it wrote it has lost nothing.
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
        reason=outcome.error or "",
        milestones=list(cell.milestones),
        seconds=round(outcome.seconds, 3),
        environment=environment(),
    ).write(path)
