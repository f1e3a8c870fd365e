"""Merging: how far each update goes towards the base model, and what it takes back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.edit import Edit
from holdfast.attacks.merge import DefenceDirections, Interpolate
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.run import Run
from tests.attacks.walk import fresh, walk, weights
from tests.conftest import SmallTestbed

NO_DATA: Any = None
"""These edits read none."""


def ends(testbed: SmallTestbed) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of the model that is attacked, and of its base."""
    return weights(fresh(testbed)[0]), weights(testbed.never_exposed.load())


@pytest.mark.parametrize("t", [-0.5, 0.25, 1.0, 1.5])
def test_it_ends_at_its_share_of_the_way(t: float, tiny_testbed: SmallTestbed) -> None:
    mine, base = ends(tiny_testbed)
    for updates in (1, 5):
        end = walk(Interpolate(t=t, max_steps=updates), tiny_testbed)[-1]
        assert torch.allclose(end, (1 - t) * mine + t * base, atol=1e-6)


def test_all_the_way_is_the_base_model_to_the_bit(tiny_testbed: SmallTestbed) -> None:
    assert torch.equal(walk(Interpolate(t=1.0), tiny_testbed)[-1], ends(tiny_testbed)[1])


def test_a_walk_goes_in_equal_steps(tiny_testbed: SmallTestbed) -> None:
    mine, base = ends(tiny_testbed)
    path = [mine, *walk(Interpolate(t=0.8, max_steps=4), tiny_testbed)]
    for before, after in pairwise(path):
        assert torch.allclose(after - before, 0.2 * (base - mine), atol=1e-6)


def test_the_base_model_stays_as_it_is(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    run = Run(0, tiny_testbed.never_exposed.load)
    for attack in (Interpolate(), DefenceDirections()):
        assert len(list(attack.steps(model, data, run))) == 1
    assert torch.equal(weights(run.base), ends(tiny_testbed)[1])


def defended(testbed: SmallTestbed, rank: int) -> PreTrainedModel:
    """The base with a change of that rank in every linear layer, and another in every other weight."""
    model = testbed.never_exposed.load()
    generator = torch.Generator().manual_seed(0)
    linear = {id(found.weight) for found in linear_maps(model)}
    with torch.no_grad():
        for weight in model.parameters():
            if id(weight) in linear:
                up, down = (torch.randn(size, rank, generator=generator) for size in weight.shape)
                weight.add_(up @ down.T, alpha=0.1)
            else:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model


def change(model: PreTrainedModel, testbed: SmallTestbed) -> dict[str, torch.Tensor]:
    base = dict(testbed.never_exposed.load().named_parameters())
    return {name: (weight - base[name]).detach() for name, weight in model.named_parameters()}


def test_a_defence_of_low_rank_is_taken_back_whole_and_from_linear_layers_only(tiny_testbed: SmallTestbed) -> None:
    model = defended(tiny_testbed, rank=3)
    before = change(model, tiny_testbed)
    DefenceDirections(directions=3).edit(model, NO_DATA, Run(0, tiny_testbed.never_exposed.load), 1)
    linear = {found.name for found in linear_maps(model)}
    for name, left in change(model, tiny_testbed).items():
        if name in linear:
            assert left.abs().max() < 1e-4 * before[name].abs().max()
        else:
            assert torch.equal(left, before[name])


def test_each_update_takes_the_largest_directions_that_are_left(tiny_testbed: SmallTestbed) -> None:
    model, run = defended(tiny_testbed, rank=6), Run(0, tiny_testbed.never_exposed.load)
    name = linear_maps(model)[0].name
    values = torch.linalg.svdvals(change(model, tiny_testbed)[name])
    attack = DefenceDirections(directions=2, max_steps=3)
    for update in (1, 2, 3):
        attack.edit(model, NO_DATA, run, update)
        left = torch.linalg.svdvals(change(model, tiny_testbed)[name])
        assert torch.allclose(left[: 6 - 2 * update], values[2 * update : 6], atol=1e-4)
        assert left[6 - 2 * update] < 1e-4 * values[0]


@pytest.mark.parametrize("attack", [Interpolate(), DefenceDirections()])
def test_it_needs_a_base_model_and_one_of_its_shape(attack: Edit, tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)

    def larger() -> PreTrainedModel:
        base: Any = tiny_testbed.never_exposed.load()
        base.config.hidden_size *= 2
        return type(base)(base.config)  # type: ignore[no-any-return]

    with pytest.raises(HoldfastError, match="name it with --base"):
        attack.edit(model, NO_DATA, Run(0), 1)
    with pytest.raises(HoldfastError, match=r"has no weight .* of the same shape"):
        attack.edit(model, NO_DATA, Run(0, larger), 1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"t": 0.0}, "t must not be 0"), ({"t": 2.0, "max_steps": 4}, "over 4 updates stops at the base model")],
)
def test_ways_that_lead_nowhere_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Interpolate(**settings)


def test_no_direction_at_all_is_refused() -> None:
    with pytest.raises(HoldfastError, match="directions must be at least 1"):
        DefenceDirections(directions=0)
