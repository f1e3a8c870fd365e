"""One trial of a study: a safeguard with some settings, built and attacked."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from holdfast.core.domain import OUTSIDE_RETAIN
from holdfast.core.files import digest, write_text
from holdfast.core.presets import describe, pick
from holdfast.core.types import NonFinite
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.stages import Recipe, build
from holdfast.safeguards.base import Safeguard

ABILITY_LOST = 0.1
"""a trial whose ability outside the retain set falls by more than this is taken only if every trial's does"""


Settings = Mapping[str, Any]


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
        """The smaller the better."""
        lost = self.ability < self.ability_of_original - ABILITY_LOST - 1e-9
        return bool(self.failed), lost, fmean(self.hazard.values()) if self.hazard else 1.0

    @classmethod
    def read(cls, path: Path) -> Trial:
        """Read one; a file that is missing or of something else is a trial without a key."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(key="", settings={})


def make(
    folder: Path,
    label: str,
    stages: tuple[tuple[str, Safeguard], ...],
    start: Path,
    seed: int,
    on_step: Callable[[int, int], None],
) -> None:
    """Build one method's model in a world's folder, unless it is there."""
    out = folder / "models" / label
    recipe = _recipe(folder / "testbed", start, stages, seed)
    if out.is_dir():
        if Checkpoint(str(out)).card.get("key") == recipe.keys()[-1]:
            return
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
    on_step: Callable[[int, int], None],
) -> None:
    """Build a model with some settings, ask the selection questions before and after the tuning attacks, and keep the scores."""
    from holdfast.core.domain import Domain
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run, seed_everything
    from holdfast.engine.walk import drive

    recipe = _recipe(domain, start, stages, seed)
    described = {name: describe(pick("holdfast.attacks", name)) for name in attacks}
    key = digest([recipe.keys(), described, selection])
    if Trial.read(file).key == key:
        return
    started, opened = time.monotonic(), Domain.open(domain)
    trial = Trial(key=key, settings=dict(settings))
    try:
        checkpoint = Checkpoint(str(build(recipe, None, on_step)))
        hazard: dict[str, float] = {}
        for name in ("none", *attacks):
            seed_everything(seed)
            model, tokenizer = checkpoint.load_both()
            ask = {
                evaluation: pick("holdfast.evals", evaluation).prepare(tokenizer, opened)
                for evaluation in (selection, OUTSIDE_RETAIN)
            }
            if name == "none":
                ability = ask[OUTSIDE_RETAIN](model)[0].value
                original = ask[OUTSIDE_RETAIN](recipe.model.load())[0].value
            else:
                attack, run = pick("holdfast.attacks", name), Run(seed)
                attack.prepare(model)
                for _ in drive(attack.steps(model, Data.attacker(opened, tokenizer), run), run):
                    pass
            hazard[name] = ask[selection](model)[0].value
        trial = replace(trial, hazard=hazard, ability=ability, ability_of_original=original)
    except NonFinite as error:
        trial = replace(trial, failed=str(error))
    write_text(file, json.dumps(asdict(replace(trial, seconds=time.monotonic() - started)), indent=2) + "\n")


def _recipe(domain: Path, start: Path, stages: tuple[tuple[str, Safeguard], ...], seed: int) -> Recipe:
    # A method that starts from another's model takes that for the original: a released chat model is what it is.
    return Recipe(model=Checkpoint(str(start)), base=Checkpoint(str(start)), domain=domain, stages=stages, seed=seed)
