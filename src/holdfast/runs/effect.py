"""Measure what safeguards did to a model, on a sample of questions that no claim is made on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.core.domain import Domain
from holdfast.core.losses import LOSSES, read_lines, traces
from holdfast.core.types import Score
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.sample import ABILITY, HAZARD, TEXT, sample_of
from holdfast.runs.stages import Recipe
from holdfast.stats.effect import Effect, Sample, ends


def effect(recipe: Recipe, out: Path) -> Effect:
    """What the stages of a recipe did to its model; the safeguarded model is in `out`.

    Raises:
        NonFinite: a model's logits are not finite.
    """
    from holdfast.engine.ranks import together

    before, after, moved = together(_before_and_after, recipe=recipe, out=out)
    kept = traces(read_lines(out / LOSSES))[-len(recipe.stages) :]
    return Effect(
        before=before,
        after=after,
        losses=tuple(ends(trace.preset, name, values) for trace in kept for name, values in trace.losses.items()),
        weights=moved,
    )


def _before_and_after(recipe: Recipe, out: Path) -> tuple[Sample, Sample, float | None]:
    """The scores of the model and of the safeguarded one, and the size of the update."""
    from holdfast.engine.costs import update_size

    before, _ = _measured(recipe.model, recipe)
    after, model = _measured(Checkpoint(str(out)), recipe)
    return before, after, update_size(model, recipe.model.folder)


def _measured(checkpoint: Checkpoint, recipe: Recipe) -> tuple[Sample, Any]:
    """The scores of a model on the sample, and the model."""
    from holdfast.campaign.milestones import Milestones
    from holdfast.engine.session import open_session
    from holdfast.engine.walk import Untouched, walk

    domain = Domain.open(recipe.domain)
    session = open_session(checkpoint, domain, "defender", recipe.seed, recipe.options)
    milestones = Milestones(sample_of(domain), domain, checkpoint.tokenizer_digest, [0])
    walk(session, Untouched(), milestones)
    return sampled(milestones, 0), session.model


def sampled(milestones: Any, step: int) -> Sample:
    """The first score of each part of the sample at a step."""
    scores: dict[str, Score] = {name: found[0] for name, found in milestones.scores[step].items()}
    return Sample(hazard=scores.get(HAZARD), ability=scores.get(ABILITY), repetition=scores.get(TEXT))
