"""Snapshots and sums of gradients on plain tensors."""

from __future__ import annotations

import torch
from torch import nn

from holdfast.core.sharded import GradientSum, Snapshot, local, trainable


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
