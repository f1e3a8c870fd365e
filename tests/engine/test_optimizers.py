"""Optimizers and schedules by name."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import (
    OptimizerName,
    ScheduleName,
    make_optimizer,
    published_point,
    schedule_factor,
    set_learning_rate,
    training_point,
)

MODEST = settings(max_examples=100, deadline=None)
RATES = {"adagrad": 0.5, "adadelta": 20.0, "sgd": 0.1, "sgd-momentum": 0.02, "sgd-nesterov": 0.02}


def descend(name: OptimizerName, steps: int, learning_rate: float) -> torch.Tensor:
    """Where the optimizer comes to on the way down from (1, -2, 3) to the origin."""
    point = torch.tensor([1.0, -2.0, 3.0]).requires_grad_()
    optimizer = make_optimizer(name, [point], learning_rate)
    for _ in range(steps):
        training_point(optimizer)
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
    published_point(optimizer)
    return point.detach().clone()


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_steps_down_a_quadratic(name: OptimizerName) -> None:
    rate = RATES.get(name, 0.1)
    lengths = [float(descend(name, steps, rate).norm()) for steps in (0, 1, 10, 40)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 0.7 * lengths[0]


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_the_rate_that_is_set_is_the_rate_that_is_used(name: OptimizerName) -> None:
    point = torch.ones(2).requires_grad_()
    optimizer = make_optimizer(name, [point], 0.1)
    set_learning_rate(optimizer, 0.0)
    training_point(optimizer)
    point.square().sum().backward()
    optimizer.step()
    published_point(optimizer)
    assert torch.equal(point, torch.ones(2))


def test_momentum_and_nesterov_and_plain_descent_are_three_paths() -> None:
    ends = [tuple(descend(name, 3, 0.02).tolist()) for name in ("sgd", "sgd-momentum", "sgd-nesterov")]
    assert len(set(ends)) == 3


@pytest.mark.parametrize("name", ["adamw", "schedule-free-adamw", "lion", "muon"])
def test_weight_decay_is_decoupled_where_it_should_be(name: OptimizerName) -> None:
    point = torch.ones(2).requires_grad_()
    optimizer = make_optimizer(name, [point], 0.1, weight_decay=0.5)
    training_point(optimizer)
    point.grad = torch.zeros(2)
    optimizer.step()
    published_point(optimizer)
    torch.testing.assert_close(point.detach(), torch.full((2,), 0.95))


def test_lion_steps_by_the_whole_rate_in_every_weight() -> None:
    point = torch.tensor([1.0, -1e-6, 0.0, 1e6]).requires_grad_()
    optimizer = make_optimizer("lion", [point], 0.125)
    point.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(point.detach(), torch.tensor([0.875, 0.125 - 1e-6, 0.0, 1e6 - 0.125]))


def test_muon_steps_alike_along_all_singular_vectors_and_leaves_vectors_to_adamw() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(8, 8))[0] for _ in range(2))
    slope = left @ torch.diag(torch.logspace(0, -2, 8)) @ right
    matrix, vector, other = torch.zeros(8, 8), torch.zeros(3), torch.zeros(3)
    for held in (matrix, vector, other):
        held.requires_grad_()
    muon, adamw = make_optimizer("muon", [matrix, vector], 0.1), make_optimizer("adamw", [other], 0.1)
    matrix.grad, vector.grad, other.grad = slope, torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, -2.0, 3.0])
    muon.step()
    adamw.step()
    assert torch.equal(vector, other)
    # Newton-Schulz brings singular values near 1, not to it; steps of an orthogonal matrix are 0.2 sqrt(8) times the rate.
    steps = torch.linalg.svdvals(-matrix.detach()) / (0.1 * 0.2 * 8**0.5)
    assert 0.5 < steps.min() <= steps.max() < 1.5
    assert (left.T @ -matrix.detach() @ right.T).diagonal().min() > 0


def test_muon_goes_on_from_its_saved_state() -> None:
    def steps(optimizer: Any, weights: list[torch.Tensor], count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            torch.stack([(weight - 1).square().sum() for weight in weights]).sum().backward()
            optimizer.step()

    def fresh() -> list[torch.Tensor]:
        return [torch.full((3, 2), 5.0).requires_grad_(), torch.full((4,), -5.0).requires_grad_()]

    whole, parts = fresh(), fresh()
    steps(make_optimizer("muon", whole, 0.1), whole, 5)
    first, second = (make_optimizer("muon", parts, 0.1) for _ in range(2))
    steps(first, parts, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, parts, 2)
    assert all(map(torch.equal, whole, parts))


def test_schedule_free_publishes_another_point_than_it_trains_at() -> None:
    point = torch.tensor([1.0]).requires_grad_()
    optimizer = make_optimizer("schedule-free-adamw", [point], 0.1)
    for _ in range(3):
        training_point(optimizer)
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
    training = point.item()
    published_point(optimizer)
    published = point.item()
    assert published != training
    training_point(optimizer)
    assert point.item() == pytest.approx(training, rel=1e-6)


def test_an_unknown_optimizer_is_an_error() -> None:
    with pytest.raises(HoldfastError, match="'sophia' is not an optimizer"):
        make_optimizer("sophia", [torch.ones(1, requires_grad=True)], 0.1)  # type: ignore[arg-type]


@MODEST
@given(
    name=st.sampled_from(get_args(ScheduleName)),
    total=st.integers(1, 300),
    warmup=st.integers(0, 40),
    period=st.none() | st.integers(1, 50),
    data=st.data(),
)
def test_a_factor_lies_between_none_and_all_of_the_rate(
    name: ScheduleName, total: int, warmup: int, period: int | None, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 <= schedule_factor(name, step, total, warmup, period) <= 1


@MODEST
@given(name=st.sampled_from(["linear-warmup", "warmup-cosine", "sgdr"]), warmup=st.integers(2, 40))
def test_warmup_rises_in_equal_steps_to_the_whole_rate(name: ScheduleName, warmup: int) -> None:
    factors = [schedule_factor(name, step, 100, warmup) for step in range(warmup)]
    assert factors[0] == pytest.approx(1 / warmup)
    assert factors[-1] == 1
    assert all(after - before == pytest.approx(1 / warmup) for before, after in pairwise(factors))
    assert schedule_factor(name, warmup, 100, warmup) == 1  # and there is no jump after it


@MODEST
@given(total=st.integers(2, 300), data=st.data())
def test_the_cosine_falls_from_the_whole_rate_to_none(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    factors = [schedule_factor("warmup-cosine", step, total, warmup) for step in range(warmup, total + 1)]
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert factors == sorted(factors, reverse=True)


def test_sgdr_restarts_every_period_and_by_default_four_times() -> None:
    factors = [schedule_factor("sgdr", step, 48, 8) for step in range(48)]
    assert [step for step, factor in enumerate(factors) if factor == 1] == [7, 8, 18, 28, 38]
    assert factors[8:18] == factors[18:28]
    assert factors[8:18] == sorted(factors[8:18], reverse=True)
    every_five = [schedule_factor("sgdr", step, 20, 0, 5) for step in range(20)]
    assert [step for step, factor in enumerate(every_five) if factor == 1] == [0, 5, 10, 15]


def test_constant_is_constant() -> None:
    assert {schedule_factor("constant", step, 10) for step in range(10)} == {1.0}
