"""An audit beside the same audit made again elsewhere: equal to the last digit, or apart within the error of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from holdfast.core.records import CampaignPlan, CellResult
from holdfast.core.reproduction import EndedRun, Measurement, Reproduction, values_hash
from holdfast.stats.cells import hazard_curve, hazard_scale
from holdfast.stats.figures import CampaignSummary
from holdfast.stats.seeds import ALPHA, NOISE, Spread, spread

Key = tuple[str, str, int, tuple[str, ...]]
"""content of the model, attack, seed, what was asked: a run, whatever its model is called"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Mean hazard under one attack, there and here."""

    model: str
    """the label of the first audit"""
    attack: str
    place: Literal["last step", "best milestone"]
    there: float
    here: float
    half: float
    """half of the interval of their difference"""

    @property
    def agrees(self) -> bool:
        return abs(self.here - self.there) <= self.half + 1e-9


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What came of making an audit again."""

    runs: int
    """of the first audit"""
    equal: int
    """of these, runs whose every value is equal to the last digit"""
    missing: tuple[EndedRun, ...]
    """runs without a counterpart, or whose counterpart ended otherwise"""
    same_place: bool
    """whether every run was made with the same versions on the same kind of processor, where equality can be asked for"""
    figures: tuple[Figure, ...]
    verdicts: Mapping[str, tuple[str, str]]
    """label of the first audit -> verdict there and here, of the models that get one"""

    @property
    def agrees(self) -> bool:
        """Whether the second audit confirms the first."""
        exact = self.equal == self.runs or not self.same_place
        same = all(there == here for there, here in self.verdicts.values())
        return exact and same and not self.missing and all(figure.agrees for figure in self.figures)


def ended_run(result: CellResult, results: Sequence[CellResult], file: str) -> EndedRun:
    """A run as `reproduce.json` holds it.

    Args:
        result: of the run.
        results: of the whole audit, which say what hazard is read from.
        file: hash of the file of its records.
    """
    scale = hazard_scale(results)
    return EndedRun(
        cell=result.cell,
        label=result.model,
        model=result.model_digest,
        attack=result.attack,
        seed=result.seed,
        evaluations=sorted(result.identity.get("evaluations", {})),
        status=result.status,
        draws=result.draws,
        file=file,
        values=values_hash(result.records),
        hazard=[Measurement(step=p.step, value=p.value, stderr=p.stderr) for p in hazard_curve(result, scale)],
    )


def compare(
    first: Reproduction, plan: CampaignPlan, results: Sequence[CellResult], summary: CampaignSummary
) -> Compared:
    """Hold an audit that was made again against the first one, run by run and figure by figure.

    Means agree where their difference is within the interval of a difference of two independent audits, over all figures
    together (Bonferroni). With fewer seeds than an interval takes, the bound is `NOISE` combined standard errors.
    """
    here = {_key(run): run for run in (ended_run(result, results, "0" * 64) for result in results)}
    pairs = [(run, here.get(_key(run))) for run in first.runs]
    both = [(run, other) for run, other in pairs if other is not None and other.status == run.status]
    judged = {model.digest: model for model in first.models if model.verdict}
    digests = {result.model: result.model_digest for result in results}
    return Compared(
        runs=len(first.runs),
        equal=sum(run.values == other.values for run, other in both),
        missing=tuple(run for run, other in pairs if other is None or other.status != run.status),
        same_place=first.device == "cpu" and _places(first.environments) == _places([r.environment for r in results]),
        figures=_figures(both),
        verdicts={
            old.label: (old.verdict, model.verdict)
            for model in summary.models
            if (old := judged.get(digests.get(model.label, ""))) is not None
        },
    )


def _places(environments: Sequence[Mapping[str, object]]) -> set[tuple[tuple[str, str], ...]]:
    return {tuple(sorted((name, str(value)) for name, value in environment.items())) for environment in environments}


def _key(run: EndedRun) -> Key:
    return run.model, run.attack, run.seed, tuple(run.evaluations)


def _figures(both: Sequence[tuple[EndedRun, EndedRun]]) -> tuple[Figure, ...]:
    groups: dict[tuple[str, str], list[tuple[EndedRun, EndedRun]]] = {}
    for run, other in both:
        if run.status == "finished" and other.status == "finished" and run.hazard and other.hazard:
            groups.setdefault((run.label, run.attack), []).append((run, other))
    wanted = [
        (label, attack, place, step, runs)
        for (label, attack), runs in groups.items()
        for place, step in _steps([run for run, _ in runs])
    ]
    return tuple(
        _figure(label, attack, place, step, runs, ALPHA / len(wanted)) for label, attack, place, step, runs in wanted
    )


def _steps(runs: Sequence[EndedRun]) -> list[tuple[Literal["last step", "best milestone"], int]]:
    """The last step, and the step of the first audit's greatest departure of the mean from the untouched model's."""
    last = max(point.step for run in runs for point in run.hazard)
    shared = [step for step in {p.step for r in runs for p in r.hazard} if all(_at(r, step) for r in runs)]
    start = fmean(run.hazard[0].value for run in runs)
    best = max(sorted(shared), key=lambda step: abs(fmean(_at(r, step).value for r in runs) - start), default=last)
    return [("last step", last)] if best == last else [("last step", last), ("best milestone", best)]


def _at(run: EndedRun, step: int) -> Measurement:
    return next(point for point in reversed(run.hazard) if point.step <= step or point is run.hazard[0])


def _figure(
    label: str,
    attack: str,
    place: Literal["last step", "best milestone"],
    step: int,
    runs: Sequence[tuple[EndedRun, EndedRun]],
    alpha: float,
) -> Figure:
    sides = []
    for side in (0, 1):
        points = [_at(pair[side], step) for pair in runs]
        sides.append(spread([p.value for p in points], fmean(p.stderr for p in points) ** 2, draws=runs[0][0].draws))
    there, here = sides
    apart = Spread(
        mean=here.mean - there.mean,
        seed_variance=there.seed_variance + here.seed_variance,
        question_variance=there.question_variance + here.question_variance,
        seeds=there.seeds,
        draws=there.draws,
    )
    half = apart.half_width(alpha) if apart.enough else NOISE * apart.stderr
    return Figure(model=label, attack=attack, place=place, there=there.mean, here=here.mean, half=half)
