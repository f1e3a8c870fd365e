"""Stepping aside: what changes, what does not, and that settling is free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast.attacks.finetune import FineTune
from holdfast.attacks.sidestep import Sidestep
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.losses import next_token_loss
from holdfast.engine.run import Run
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed

TUNE = FineTune(batch_size=8, learning_rate=1e-2)


def guarded(testbed: SmallTestbed, count: int) -> dict[str, torch.Tensor]:
    """Leading left singular vectors of the gradient of two batches, by map."""
    model, data = fresh(testbed)
    rows = data.stream("hazard", batch_size=8, seed=3)
    for batch in (next(rows), next(rows)):
        next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count).backward()  # type: ignore[no-untyped-call]
    return {found.name: torch.linalg.svd(found.weight.grad).U[:, :count] for found in linear_maps(model)}


def test_no_map_changes_in_what_it_writes_along_the_leading_directions(tiny_testbed: SmallTestbed) -> None:
    bases, before = guarded(tiny_testbed, 3), fresh(tiny_testbed)[0]
    model, data = fresh(tiny_testbed)
    for _ in Sidestep(directions=3, probes=2, max_steps=3, tune=TUNE).steps(model, data, Run(3)):
        for found, old in zip(linear_maps(model), linear_maps(before), strict=True):
            change = (found.weight - old.weight).detach()
            assert change.norm() > 1e-3, found.name
            assert (bases[found.name].T @ change).norm() < 1e-3 * change.norm(), found.name


def test_after_the_kick_every_direction_is_free(tiny_testbed: SmallTestbed) -> None:
    bases, before = guarded(tiny_testbed, 3), fresh(tiny_testbed)[0]
    model, data = fresh(tiny_testbed)
    attack = Sidestep(directions=3, probes=2, max_steps=4, kick_steps=2, tune=TUNE)
    assert attack.benign_steps == 2
    inside = []
    for _ in attack.steps(model, data, Run(3)):
        changes = [
            (bases[found.name], (found.weight - old.weight).detach())
            for found, old in zip(linear_maps(model), linear_maps(before), strict=True)
        ]
        inside.append(max(float((basis.T @ change).norm() / change.norm()) for basis, change in changes))
    assert max(inside[:2]) < 1e-3
    assert min(inside[2:]) > 1e-2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"directions": 0}, "directions must be at least 1"),
        ({"kick_steps": -1}, "kick_steps must not be below 0"),
        ({"kick_learning_rate": 0.0}, "kick_learning_rate must be above 0"),
        ({"tune": FineTune(lora_rank=2)}, "lora_rank 0"),
        ({"tune": FineTune(optimizer="schedule-free-adamw")}, "not schedule-free"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Sidestep(**changes)
