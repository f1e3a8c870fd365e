"""Snapshots and sums of gradients on plain tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.engine.sharded import GradientSum, Snapshot, displaced, local, trainable


def make() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_plain_tensor_is_its_own_shard() -> None:
    tensor = torch.ones(2)
    assert local(tensor) is tensor


def test_a_snapshot_puts_back_what_was_and_is_no_alias() -> None:
    model = make()
    before = weights(model)
    snapshot = Snapshot(model)
    for _ in range(2):  # once restored, it can be restored again
        for parameter in trainable(model):
            parameter.data.add_(1)
        snapshot.restore()
        assert all(map(torch.equal, before, weights(model)))


def test_a_snapshot_holds_trainable_weights_only() -> None:
    model = make()
    snapshot = Snapshot(model)
    model[0].bias.data.fill_(7)
    snapshot.restore()
    assert (model[0].bias == 7).all()


def test_a_gradient_sum_is_weighted_and_clears_what_it_takes() -> None:
    model = make()
    gradients = GradientSum(model)
    inputs = torch.randn(5, 3)
    for weight in (2.0, -0.5):
        model(inputs).square().sum().backward()
        gradients.take(weight)
        assert all(parameter.grad is None for parameter in model.parameters())
    gradients.give()
    given = [parameter.grad.clone() for parameter in trainable(model) if parameter.grad is not None]
    model.zero_grad()
    model(inputs).square().sum().backward()
    for total, parameter in zip(given, trainable(model), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(total, 1.5 * parameter.grad)
    assert model[0].bias.grad is None


def test_a_weight_without_a_gradient_counts_as_zero_and_a_sum_starts_anew() -> None:
    model = make()
    gradients = GradientSum(model)
    model[1](torch.ones(1, 4)).sum().backward()
    gradients.take()
    gradients.give()
    assert model[0].weight.grad is not None
    assert (model[0].weight.grad == 0).all()
    model.zero_grad()
    gradients.take()
    gradients.give()
    assert all((parameter.grad == 0).all() for parameter in trainable(model) if parameter.grad is not None)


def test_what_is_taken_may_be_kept_for_another_use() -> None:
    model = make()
    gradients = GradientSum(model)
    model(torch.ones(2, 3)).sum().backward()
    held = [parameter.grad.clone() for parameter in trainable(model) if parameter.grad is not None]
    gradients.take(keep=True)
    assert all(
        parameter.grad is not None and torch.equal(parameter.grad, before)
        for parameter, before in zip(trainable(model), held, strict=True)
    )


@pytest.mark.parametrize("length", [0.5, -2.0])
def test_displaced_moves_by_a_length_along_all_gradients_together_and_back(length: float) -> None:
    model = make()
    before = [parameter.detach().clone() for parameter in trainable(model)]
    model(torch.randn(5, 3)).square().sum().backward()
    slopes = [parameter.grad.clone() for parameter in trainable(model) if parameter.grad is not None]
    with displaced(model, length):
        assert all(parameter.grad is None for parameter in trainable(model))
        moves = [parameter.detach() - old for parameter, old in zip(trainable(model), before, strict=True)]
    square = sum(float(move.square().sum()) for move in moves)
    assert square**0.5 == pytest.approx(abs(length), rel=1e-4)
    along = sum(float((move * slope).sum()) for move, slope in zip(moves, slopes, strict=True))
    norm = sum(float(slope.square().sum()) for slope in slopes) ** 0.5
    assert along == pytest.approx(length * norm, rel=1e-4)
    assert all(torch.equal(parameter, old) for parameter, old in zip(trainable(model), before, strict=True))


def test_at_a_point_without_slope_nothing_is_displaced() -> None:
    model = make()
    before = [parameter.detach().clone() for parameter in trainable(model)]
    with displaced(model, 1.0):
        assert all(torch.equal(parameter, old) for parameter, old in zip(trainable(model), before, strict=True))


def test_a_snapshot_tells_how_far_the_weights_have_moved() -> None:
    model = make()
    snapshot = Snapshot(model)
    with torch.no_grad():
        for parameter in trainable(model):
            parameter.add_(0.25)
    for moved in snapshot.difference():
        torch.testing.assert_close(moved, torch.full_like(moved, 0.25))
