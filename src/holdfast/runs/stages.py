"""From a model to a safeguarded checkpoint, stage by stage.

A checkpoint is keyed by the content of what made it: the model, the original model, the defender's data, the seed, and
the stages up to and including its own. Each prefix of stages is kept in the cache, so a shared first stage is trained
once, and a run that was killed goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from holdfast.core.domain import DEFENDER_ROLES, Domain
from holdfast.core.files import atomic_folder, cache_folder, copy_folder, digest, write_text
from holdfast.core.presets import describe
from holdfast.core.types import HoldfastError, Precision
from holdfast.engine.checkpoint import CARD, Checkpoint, save_checkpoint
from holdfast.safeguards.base import Safeguard

PROTOCOL = 2
"""Raised whenever the same stages would give other weights, so that no cached checkpoint is taken for a new one."""

OnStep = Callable[[int, int], None]
"""Called with outer steps done and outer steps in all, over every stage."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a safeguarded checkpoint is made of."""

    model: Checkpoint
    """the model to safeguard"""
    domain: Path
    """the domain whose defender's rows are used"""
    stages: tuple[tuple[str, Safeguard], ...]
    """(preset name, safeguard), in order"""
    base: Checkpoint | None = None
    """the original model, which retain losses compare with; None: what the model's card names, else the model itself"""
    seed: int = 0
    device: str = "cpu"
    dtype: Precision = "float32"
    trust_remote_code: bool = False

    def original(self) -> Checkpoint:
        """The model before the first safeguard.

        Raises:
            HoldfastError: the card names one that has gone or changed, and none was given.
        """
        if self.base is not None:
            return self.base
        named = self.model.card.get("base")
        if not named:
            return self.model
        base = Checkpoint(named["path"])
        try:
            unchanged = base.digest == named["digest"]
        except (HoldfastError, OSError):
            unchanged = False
        if not unchanged:
            raise HoldfastError(
                f"the original model {base.path}, named in the model's card, is gone or changed; name it with --base"
            )
        return base

    def keys(self) -> list[str]:
        """One key per prefix of the stages."""
        domain = Domain.open(self.domain)
        roles = [role for role in DEFENDER_ROLES if domain.has(role)]
        made_of: dict[str, Any] = {
            "protocol": PROTOCOL,
            "model": self.model.digest,
            "tokenizer": self.model.tokenizer_digest,
            "base": self.original().digest,
            "data": domain.digest(*roles),
            "max_length": domain.max_length,
            "seed": self.seed,
            "dtype": self.dtype,
        }
        described = [describe(safeguard) for _, safeguard in self.stages]
        return [digest({**made_of, "stages": described[: i + 1]}) for i in range(len(described))]


def build(recipe: Recipe, out: Path | None = None, on_step: OnStep = lambda step, total: None) -> Path:
    """Train what is not in the cache yet; return the folder of the last stage, which is `out` where that is given.

    Raises:
        HoldfastError: data are missing or malformed, a loss or a weight became non-finite, the original is not known.
    """
    keys = recipe.keys()
    folders = [cache_folder() / "stages" / key for key in keys]
    done = max((i + 1 for i, folder in enumerate(folders) if folder.is_dir()), default=0)
    total = sum(safeguard.outer_steps for _, safeguard in recipe.stages)
    before = sum(safeguard.outer_steps for _, safeguard in recipe.stages[:done])
    on_step(before, total)
    for i in range(done, len(recipe.stages)):
        source = Checkpoint(str(folders[i - 1])) if i else recipe.model
        _train(recipe, i, source, keys[i], folders[i], lambda step, before=before: on_step(before + step, total))  # type: ignore[misc]
        before += recipe.stages[i][1].outer_steps
    if out is None:
        return folders[-1]
    with atomic_folder(out) as temporary:
        copy_folder(folders[-1], temporary)
        # The cache may have been filled from the same contents at other paths.
        card = {**Checkpoint(str(temporary)).card, **_made_from(recipe)}
        write_text(temporary / CARD, json.dumps(card, indent=2) + "\n")
    return out


def _made_from(recipe: Recipe) -> dict[str, dict[str, str]]:
    """The card's entries for the models that a checkpoint comes from."""
    named = {"model": recipe.model, "base": recipe.original()}
    return {name: {"path": str(held.folder.resolve()), "digest": held.digest} for name, held in named.items()}


def _train(
    recipe: Recipe, index: int, source: Checkpoint, key: str, folder: Path, on_step: Callable[[int], None]
) -> None:
    from holdfast.engine.costs import Meter
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run, seed_everything
    from holdfast.engine.walk import drive

    name, safeguard = recipe.stages[index]
    domain = Domain.open(recipe.domain)
    original = recipe.original()
    seed_everything(recipe.seed)
    model, tokenizer = source.load_both(recipe.device, recipe.dtype, recipe.trust_remote_code)
    run = Run(
        recipe.seed,
        lambda: original.load(recipe.device, recipe.dtype, recipe.trust_remote_code),
        lambda: source.load(recipe.device, recipe.dtype, recipe.trust_remote_code),
    )
    checkpoint = folder.with_suffix(".part")
    run.resume(checkpoint, model, key)
    started, losses = time.monotonic(), dict[str, float]()
    data = Data.defender(domain, tokenizer, recipe.device)
    meter = Meter(data)
    run.track(meter=meter)
    steps = meter.walk(safeguard.steps(model, data, run))
    for step, here in drive(steps, model, run, checkpoint=checkpoint, key=key):
        losses = dict(here)
        on_step(step)
    stage = {
        "preset": name,
        "config": describe(safeguard),
        "seconds": round(time.monotonic() - started, 1),
        "tokens": meter.tokens,
        "flops": meter.flops,
        "last losses": losses,
    }
    card = {
        "holdfast": version("holdfast"),
        "key": key,
        **_made_from(recipe),
        "domain": domain.name,
        "data": domain.digest(*(role for role in DEFENDER_ROLES if domain.has(role))),
        "seed": recipe.seed,
        "stages": [*(source.card["stages"] if index else recipe.model.card.get("stages", [])), stage],
    }
    with atomic_folder(folder) as temporary:
        save_checkpoint(model, tokenizer, temporary, card, _readme(card))
    checkpoint.unlink(missing_ok=True)


def _readme(card: dict[str, Any]) -> str:
    stages = " → ".join(stage["preset"] for stage in card["stages"])
    data = "".join(f"| `{role}` | `{content[:16]}` |\n" for role, content in card["data"].items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [holdfast, tamper-resistance]
---

# A model with a safeguard against tampering

Made by holdfast {card["holdfast"]}: {stages}, on the domain *{card["domain"]}*, seed {card["seed"]}.
Every setting is in `holdfast.json`.

A safeguard in open weights raises the cost of removing it; it is no guarantee. Measure yours with `holdfast audit`, and
publish what that finds beside these weights.

| made from | content |
|---|---|
| the model | `{card["model"]["digest"][:16]}` |
| the original model | `{card["base"]["digest"][:16]}` |
{data}"""
