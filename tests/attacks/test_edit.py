"""Edits with and without fine-tuning after them: what is yielded, read and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.attacks.compress import Prune
from holdfast.attacks.edit import Edit
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.merge import Interpolate
from holdfast.core.types import HoldfastError
from holdfast.engine.losses import next_token_loss
from holdfast.engine.run import Run, seed_everything
from tests.attacks.walk import fresh, same, walk, weights
from tests.conftest import SmallTestbed

TUNE = FineTune(batch_size=4)


def test_fine_tuning_goes_on_from_the_edit_and_from_nothing_else(tiny_testbed: SmallTestbed) -> None:
    both = walk(Prune(tune=TUNE, max_steps=4), tiny_testbed)
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    Prune().edit(model, data, Run(3), 1)
    path = [weights(model)]
    path += [weights(model) for _ in replace(TUNE, max_steps=3).steps(model, data, Run(3))]
    assert same(both, path)


@pytest.mark.parametrize("attack", [Prune(max_steps=2, batch_size=3), Prune(tune=TUNE, max_steps=2, batch_size=3)])
def test_an_edit_yields_the_loss_that_the_edited_model_has_on_one_seeded_batch(
    attack: Edit, tiny_testbed: SmallTestbed
) -> None:
    model, data = fresh(tiny_testbed)
    batch = next(data.stream("hazard", batch_size=3, seed=5))
    steps = attack.steps(model, data, Run(5))
    for _ in range(attack.edits):
        loss = next(steps)
        with torch.no_grad():
            assert loss == next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count)


def test_what_it_says_of_itself_follows_from_the_fine_tuning() -> None:
    alone = Prune(max_steps=3)
    assert (alone.edits, alone.benign_steps, alone.optimises, alone.draws) == (3, 3, False, False)
    assert alone.reads() == ("hazard",)
    tuned = Prune(tune=FineTune(hazard="hazard_ood", benign_first=0.4), max_steps=11)
    assert (tuned.edits, tuned.benign_steps, tuned.optimises, tuned.draws) == (1, 1 + 4, True, True)
    assert tuned.reads() == ("hazard", "hazard_ood", "benign")
    assert not tuned.uses_base
    assert Interpolate().uses_base


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_steps": 1, "tune": TUNE}, "max_steps must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Prune(**changes)
