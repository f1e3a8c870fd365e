"""Sums tell whether weights are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from holdfast.engine.fingerprint import Fingerprint


def model() -> nn.Module:
    torch.manual_seed(3)
    built = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, dtype=torch.bfloat16))
    built.register_buffer("experts", torch.randn(2, 3, 4))
    return built


def matrix(model: nn.Module) -> torch.Tensor:
    return model.get_parameter("0.weight").data


def flip_a_bit(model: nn.Module) -> None:
    matrix(model).view(torch.int32)[3, 2] ^= 1


def exchange_rows(model: nn.Module) -> None:
    matrix(model)[[0, 1]] = matrix(model)[[1, 0]]


def exchange_columns(model: nn.Module) -> None:
    matrix(model)[:, [0, 1]] = matrix(model)[:, [1, 0]]


def reverse(model: nn.Module) -> None:
    model.get_parameter("2.bias").data.copy_(model.get_parameter("2.bias").data.flip(0))


def count_along(model: nn.Module) -> None:
    model.get_buffer("1.num_batches_tracked").add_(1)


def move_an_expert(model: nn.Module) -> None:
    model.get_buffer("experts")[1, 2, 3] += 1e-6


def freeze_as_half(model: nn.Module) -> None:
    model.get_submodule("0").half()


@pytest.mark.parametrize(
    "change", [flip_a_bit, exchange_rows, exchange_columns, reverse, count_along, move_an_expert, freeze_as_half]
)
def test_every_change_of_weights_and_buffers_is_seen(change: Callable[[nn.Module], None]) -> None:
    changed, before = model(), Fingerprint(model())
    assert Fingerprint(changed).matches(before)
    change(changed)
    assert not Fingerprint(changed).matches(before)
