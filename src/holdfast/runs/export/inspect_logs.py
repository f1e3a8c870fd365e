"""An audit's records as logs of Inspect: one log a cell, whose samples are the milestones and whose scorers the evaluations.

`inspect view start --log-dir OUT` then shows every attack with its curve. A log names the attack with its settings, as the
records do; a log is no public form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from holdfast.core.files import atomic_folder, claim_output, only_writer
from holdfast.core.records import CampaignPlan, CellResult, Record, cell_path, read_campaign
from holdfast.core.types import HoldfastError, Measure

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog


def write_inspect_logs(folder: Path, out: Path) -> list[str]:
    """Write a log for each cell of a campaign that has ended; return the names of the logs.

    Args:
        folder: that an audit, an attack or a demo wrote.
        out: a new or empty folder.

    Raises:
        HoldfastError: inspect-ai is not installed, the folder holds no campaign with an ended cell, or `out` holds something.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise HoldfastError("inspect-ai is not installed; install it with: pip install 'holdfast[inspect]'") from error
    plan, results = read_campaign(folder)
    names = list[str]()
    claim_output(out, folder)
    with only_writer(out), atomic_folder(out) as made:
        for result in results:
            ended = datetime.fromtimestamp(int(cell_path(folder, result.cell).stat().st_mtime), UTC)
            name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{result.attack}-{result.model}-seed-{result.seed}")[:120]
            # The viewer reads a time, a task and an identity off a log's name.
            stem = f"{ended.isoformat().replace(':', '-')}_{name}_{result.cell}"
            write_eval_log(_log(plan, result, ended), str(made / f"{stem}.eval"))
            names.append(f"{stem}.eval")
    return names


def _log(plan: CampaignPlan, result: CellResult, ended: datetime) -> EvalLog:
    from inspect_ai import log as inspect

    started = ended - timedelta(seconds=round(result.seconds))
    result = replace(result, records=sorted(result.records, key=_reading_order))
    steps = sorted({record.step for record in result.records})
    samples = [_sample(plan, result, step) for step in steps]
    failed = None
    if result.status != "finished":
        failed = inspect.EvalError(message=f"{result.status}: {result.reason}", traceback="", traceback_ansi="")
    return inspect.EvalLog(
        status="error" if failed else "success",
        eval=inspect.EvalSpec(
            eval_id=result.cell, run_id=result.cell, task_id=result.cell, created=started.isoformat(), task=_task(result),
            task_args=result.attack_config, tags=[plan.suite] if plan.suite else None, model=f"holdfast/{result.model}",
            model_args={"digest": result.model_digest, "role": plan.models.get(result.model, "")},
            dataset=inspect.EvalDataset(name=plan.domain, samples=len(steps), sample_ids=steps),
            config=inspect.EvalConfig(), packages={name: str(value) for name, value in result.environment.items()},
            metadata={
                "title": plan.title, "seed": result.seed, "family": result.family, "status": result.status,
                "stopped": result.stopped, "seen in training": result.seen_in_training, "tokens": result.tokens,
                "flops": result.flops, "schema": result.schema,
            },
        ),
        results=inspect.EvalResults(
            total_samples=len(steps), completed_samples=len(steps), scores=_scores(result.records)
        ),
        stats=inspect.EvalStats(started_at=started.isoformat(), completed_at=ended.isoformat()),
        error=failed,
        samples=samples,
    )  # fmt: skip


def _reading_order(record: Record) -> tuple[int, int, bool]:
    """By step, hazard first and questions before losses: the viewer shows the first score of a log beside its name."""
    return record.step, _ORDER.index(record.measures), record.metric == "nats"


_ORDER = get_args(Measure)


def _task(result: CellResult) -> str:
    """The attack; for the untouched model, what it was asked where that is one thing."""
    asked = {record.evaluation for record in result.records}
    if result.attack != "none":
        return result.attack
    return f"untouched, {asked.pop()}" if len(asked) == 1 else "untouched"


def _sample(plan: CampaignPlan, result: CellResult, step: int) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.scorer import Score

    costs = {at: {"tokens": tokens, "flops": flops} for at, tokens, flops in result.costs}
    return EvalSample(
        id=step,
        epoch=1,
        input=f"{result.model} after {step} updates of {result.attack}, seed {result.seed}, on {plan.domain}",
        target="",
        metadata={"step": step, **costs.get(step, {})},
        scores={
            f"{record.evaluation} {record.metric}": Score(
                value=record.value,
                metadata={name: getattr(record, name) for name in ("measures", "stderr", "n", "chance", "complete")},
            )
            for record in result.records
            if record.step == step
        },
    )


def _scores(records: Sequence[Record]) -> list[Any]:
    """Each evaluation's last values, of records in reading order."""
    from inspect_ai.log import EvalMetric, EvalScore

    last: dict[str, dict[str, Record]] = {}
    for record in records:
        last.setdefault(record.evaluation, {})[record.metric] = record
    return [
        EvalScore(
            name=evaluation,
            scorer=evaluation,
            metrics={
                name: EvalMetric(
                    name=name,
                    value=record.value,
                    metadata={"step": record.step, "stderr": record.stderr, "n": record.n},
                )
                for name, record in metrics.items()
            },
        )
        for evaluation, metrics in last.items()
    ]
