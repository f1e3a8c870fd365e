"""Measure a model as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from holdfast.campaign.cells import CHOOSING, check_positions, evaluations_of
from holdfast.campaign.examining import look_at
from holdfast.campaign.milestones import Milestones
from holdfast.core.domain import Domain
from holdfast.core.files import only_writer, write_text
from holdfast.core.findings import Findings
from holdfast.core.options import Options
from holdfast.core.outputs import claim_file
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError, Measure, Score
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.base import Evaluation
from holdfast.evals.refusals import Requests


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The result of one evaluation."""

    evaluation: str
    measures: Measure
    scores: tuple[Score, ...]


_SCORES = re.compile(rb'^\[\s*\{\s*"evaluation": "')
"""A file of scores."""


def claim_scores(out: Path) -> None:
    """Check that scores may be written to the file `out`.

    Raises:
        HoldfastError: as `claim_file`.
    """
    claim_file(out, _SCORES)


def write_scores(out: Path, results: Sequence[Evaluated]) -> None:
    """Write the scores as a JSON list, one table a score."""
    rows = [
        {"evaluation": result.evaluation, "measures": result.measures, **vars(score)}
        for result in results
        for score in result.scores
    ]
    with only_writer(out):
        write_text(out, json.dumps(rows, indent=2) + "\n")


def evaluate(
    model: str,
    folder: Path,
    options: Options,
    also: Mapping[str, Evaluation] = MappingProxyType({}),
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> list[Evaluated]:
    """Ask a model everything that a domain can ask, the selection questions too, and the evaluations that the user named.

    Args:
        model: a Hugging Face folder or a hub id.
        folder: of the domain.
        options: how the model is run.
        also: by name.
        on_step: called with evaluations done and evaluations in all.

    Raises:
        HoldfastError: the domain holds nothing to measure with, or the model cannot be loaded.
        NonFinite: a score is void.
    """
    from holdfast.engine.ranks import together

    domain, checkpoint = Domain.open(folder), Checkpoint(model)
    evaluations = {**_evaluations(domain), **also}
    if not evaluations:
        raise HoldfastError(f"{folder} holds nothing to measure with; add a [questions.…] section to its domain.toml")
    checkpoint.check(options.trust_remote_code, domain.max_length)
    check_positions(checkpoint, domain, tuple(evaluations.items()), options.trust_remote_code)
    scores = together(
        _asked,
        mine={"on_step": on_step},
        checkpoint=checkpoint, folder=folder, options=options, evaluations=evaluations,
    )  # fmt: skip
    return [
        Evaluated(evaluation=name, measures=evaluations[name].measures(domain), scores=tuple(measured))
        for name, measured in scores.items()
    ]


def _asked(
    checkpoint: Checkpoint,
    folder: Path,
    options: Options,
    evaluations: Mapping[str, Evaluation],
    on_step: Callable[[int, int], None] = lambda step, total: None,
) -> dict[str, list[Score]]:
    """The scores of each evaluation on the live model."""
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import Untouched, walk

    domain = Domain.open(folder)
    session = open_session(checkpoint, domain, "attacker", 0, options)
    milestones = Milestones(evaluations, domain, checkpoint.tokenizer_digest, [0], on_step)
    walk(session, Untouched(), milestones)
    return milestones.scores[0]


def noticed(model: str, folder: Path, trust_remote_code: bool) -> Findings:
    """What was noticed about the questions and rows that `evaluate` measures with.

    Raises:
        HoldfastError: as `evaluate`.
    """
    return look_at(Domain.open(folder), [Checkpoint(model)], (), trust_remote_code)


def _evaluations(domain: Domain) -> Mapping[str, Evaluation]:
    along, probes = evaluations_of(domain)
    presets = collect("holdfast.evals")
    measured = {
        **dict(along),
        **dict(probes),
        **{name: presets[name] for name in CHOOSING if presets[name].available(domain)},
    }
    asked = {evaluation.questions for evaluation in measured.values() if isinstance(evaluation, Requests)}
    # Requests that no preset names, such as those about what the defender trained on. No campaign waits for them.
    more = [name for name in domain.question_sources if domain.questions(name).measures == "refusal"]
    return {**measured, **{name: Requests(questions=name, counts="complied") for name in more if name not in asked}}
