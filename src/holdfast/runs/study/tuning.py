"""One trial of a study: a safeguard with some settings, built and attacked."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, with_config

from holdfast.attacks.base import Attack
from holdfast.campaign.milestones import Milestones
from holdfast.campaign.on_ranks import on_ranks
from holdfast.core.domain import OUTSIDE_RETAIN, Domain
from holdfast.core.files import digest, write_text
from holdfast.core.options import Options
from holdfast.core.presets import describe, pick
from holdfast.core.reading import STRICT, parsed
from holdfast.core.reuse import say_reused
from holdfast.core.types import NonFinite
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.stages import OnStep, Recipe, build, is_built
from holdfast.runs.study.method import Method, Settings
from holdfast.safeguards.base import Safeguard

ABILITY_LOST = 0.1
"""a trial whose ability outside the retain set falls by more than this is taken only if every trial's does"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial, as it is kept."""

    key: str
    """content of all that it depends on"""
    settings: dict[str, Any]
    seconds: float = 0.0
    """building and attacking"""
    hazard: dict[str, float] = field(default_factory=dict)
    """selection hazard before ("none") and after each tuning attack"""
    ability: float = 0.0
    """outside the retain set, before any attack"""
    ability_of_original: float = 0.0
    failed: str = ""
    """why it has no scores, in one sentence"""

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The order of trials: smaller is better."""
        lost = self.ability < self.ability_of_original - ABILITY_LOST - 1e-9
        return bool(self.failed), lost, fmean(self.hazard.values()) if self.hazard else 1.0

    @classmethod
    def read(cls, path: Path) -> Trial:
        """Read a trial; a file that is missing or of another kind is a trial without a key."""
        try:
            trial: Trial = parsed(_TRIAL, path.read_bytes())
            return trial
        except (OSError, ValueError):
            return cls(key="", settings={})


_TRIAL = TypeAdapter(Trial)


def best_trial(files: Sequence[Path]) -> Trial:
    """The trial with the least hazard before and after the tuning attacks, among those that keep ability."""
    return min(map(Trial.read, files), key=lambda trial: trial.rank)


def make(
    method: Method,
    trials: Sequence[Path],
    domain: Path,
    start: Path,
    out: Path,
    seed: int,
    options: Options,
    on_step: OnStep,
) -> None:
    """Build a method's model with the settings of its best trial, unless the model exists.

    Args:
        method: what is built.
        trials: the files of its trials; none: the method's own settings.
        domain: the domain whose defender's rows are used.
        start: the model to safeguard, which is taken for the original too.
        out: the folder of the model.
        seed: of the training.
        options: precision and device.
        on_step: called with updates done and updates in all.
    """
    recipe = _recipe(domain, start, method.built(best_trial(trials).settings if trials else {}), seed, options)
    if is_built(recipe, out):
        say_reused(f"the model {method.label}")
        return
    if out.is_dir():
        shutil.rmtree(out)
    build(recipe, out, on_step)


def run_trial(
    file: Path,
    domain: Path,
    start: Path,
    stages: tuple[tuple[str, Safeguard], ...],
    settings: Settings,
    attacks: tuple[str, ...],
    selection: str,
    seed: int,
    options: Options,
    on_step: OnStep,
) -> None:
    """Build a model with some settings, ask the selection questions before and after the tuning attacks, and keep the scores."""
    recipe = _recipe(domain, start, stages, seed, options)
    described = {name: describe(pick("holdfast.attacks", name)) for name in attacks}
    key = digest([recipe.keys(), described, selection])
    if Trial.read(file).key == key:
        say_reused(f"trial {file.stem}")
        return
    started = time.monotonic()
    trial = Trial(key=key, settings=dict(settings))
    asking: dict[str, Any] = {"domain": domain, "selection": selection, "seed": seed, "options": options}
    try:
        checkpoint = Checkpoint(str(build(recipe, None, on_step)))
        untouched = _scores(checkpoint, None, **asking)
        hazard = {name: _scores(checkpoint, pick("holdfast.attacks", name), **asking)[selection] for name in attacks}
        trial = replace(
            trial,
            hazard={"none": untouched[selection], **hazard},
            ability=untouched[OUTSIDE_RETAIN],
            ability_of_original=_scores(recipe.model, None, **asking)[OUTSIDE_RETAIN],
        )
    except NonFinite as error:
        trial = replace(trial, failed=str(error))
    write_text(file, json.dumps(asdict(replace(trial, seconds=time.monotonic() - started)), indent=2) + "\n")


def _scores(checkpoint: Checkpoint, attack: Attack | None, options: Options, **asking: Any) -> dict[str, float]:
    """The first score of the selection questions and of ability outside the retain set, after an attack or without one."""
    return on_ranks(options.ranks, _scores_here, checkpoint=checkpoint, attack=attack, options=options, **asking)


def _scores_here(
    checkpoint: Checkpoint, attack: Attack | None, domain: Path, selection: str, seed: int, options: Options
) -> dict[str, float]:
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import Untouched, walk

    opened, last = Domain.open(domain), attack.max_steps if attack else 0
    session = open_session(checkpoint, opened, "attacker", seed, options, prepare=[attack.prepare] if attack else [])
    evaluations = {name: pick("holdfast.evals", name) for name in (selection, OUTSIDE_RETAIN)}
    milestones = Milestones(evaluations, opened, checkpoint.tokenizer_digest, [last])
    walk(session, attack or Untouched(), milestones)
    return {name: scores[0].value for name, scores in milestones.scores[last].items()}


def _recipe(
    domain: Path, start: Path, stages: tuple[tuple[str, Safeguard], ...], seed: int, options: Options
) -> Recipe:
    # A method that starts from another's model takes that for the original: a released chat model is what it is.
    original = Checkpoint(str(start))
    return Recipe(model=original, base=original, domain=domain, stages=stages, seed=seed, options=options)
