"""Evaluations that are asked because the user names them: presets, and tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from holdfast.campaign.cells import evaluations_of
from holdfast.core.domain import Domain
from holdfast.core.presets import pick, preset_of
from holdfast.core.processes import started_by_torchrun
from holdfast.core.types import HoldfastError
from holdfast.evals.base import Evaluation
from holdfast.evals.endpoint import Endpoint
from holdfast.evals.judged import Judged

HARNESS = "lm-eval:"
"""Begins the name of a task of the harness, or of a folder of the user's tasks."""


def named_evaluations(
    names: Sequence[str], domain: Path, judge: Endpoint | None = None, ranks: int = 1
) -> Mapping[str, Evaluation]:
    """The evaluations of these names, by the label that their records get.

    Args:
        names: presets; `lm-eval:TASK`, several tasks with commas between them; `lm-eval:FOLDER` for every task in a folder.
        domain: which asks some evaluations anyway.
        judge: the language model that evaluations with judges ask.
        ranks: how many processes will share the model.

    Raises:
        HoldfastError: there is no such evaluation, the domain lacks what it needs, it is asked twice, or a judge would be asked
            by several processes.
    """
    found: dict[str, Evaluation] = {}
    opened = Domain.open(domain) if names else None
    asked = {preset_of(name) for part in evaluations_of(opened) for name, _ in part} if opened else set()
    for name in names:
        label, evaluation = _of_harness(name) if name.startswith(HARNESS) else (name, pick("holdfast.evals", name))
        if label in found or label in asked:
            raise HoldfastError(f"{label} is asked already; leave out one --evaluation {name}")
        if opened is not None and not evaluation.available(opened):
            raise HoldfastError(
                f"{domain} lacks what the evaluation {name} needs; holdfast list {name} shows its fields"
            )
        if isinstance(evaluation, Judged) and evaluation.asks:
            if started_by_torchrun() or ranks > 1:
                raise HoldfastError(
                    f"{name} asks a language model for its verdict, and each process that shares the model would ask; run the "
                    "command without torchrun and without --ranks"
                )
            evaluation = replace(evaluation, endpoint=judge or _missing(name))
        found[label] = evaluation
    if judge is not None and not any(
        isinstance(evaluation, Judged) and evaluation.asks for evaluation in found.values()
    ):
        raise HoldfastError(
            "--judge-url has nothing to judge; add --evaluation compliance_rubric, or leave --judge-url out"
        )
    return found


def _missing(name: str) -> NoReturn:
    raise HoldfastError(f"{name} asks a language model for its verdict; name one with --judge-url and --judge-model")


def _of_harness(name: str) -> tuple[str, Evaluation]:
    from holdfast.evals.lm_eval import LMEval

    what = name.removeprefix(HARNESS)
    if Path(what).is_dir():
        return HARNESS + Path(what).resolve().name, LMEval(folder=what)
    return name, LMEval(tasks=tuple(part.strip() for part in what.split(",") if part.strip()))
