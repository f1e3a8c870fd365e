"""Losses against plain transcriptions, a token at a time."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from holdfast.core.types import Distance
from holdfast.engine.data import UNLABELLED
from holdfast.engine.losses import (
    distance_from_directions,
    negative_entropy,
    next_token_loss,
    representation_distance,
    without_sinks,
)

ROWS, LENGTH, WORDS, WIDTH, LAYERS = 3, 5, 7, 4, 3
LENGTHS = (5, 3, 2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def labels() -> torch.Tensor:
    """Padding on the right and, in the first row, two tokens that are not to be learned."""
    labels = torch.randint(WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(LENGTHS):
        labels[row, length:] = UNLABELLED
    labels[0, :2] = UNLABELLED
    return labels


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]


def targets(labels: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, position that predicts, token to predict)."""
    return [
        (row, t, int(labels[row, t + 1]))
        for row in range(ROWS)
        for t in range(LENGTH - 1)
        if labels[row, t + 1] != UNLABELLED
    ]


def test_the_next_token_loss_is_the_mean_surprise_of_labelled_tokens(labels: torch.Tensor) -> None:
    logits, asked = normal(ROWS, LENGTH, WORDS), targets(labels)
    expected = [-math.log(logits[row, t].softmax(-1)[token]) for row, t, token in asked]
    loss = next_token_loss(logits, labels, len(asked))
    assert loss.item() == pytest.approx(sum(expected) / len(asked), rel=1e-5)


def test_the_tamper_resistance_loss_is_the_mean_entropy_of_labelled_positions(labels: torch.Tensor) -> None:
    logits, asked = normal(ROWS, LENGTH, WORDS), targets(labels)
    expected = 0.0
    for row, t, _ in asked:
        expected += sum(float(p) * math.log(p) for p in logits[row, t].softmax(-1))
    assert negative_entropy(logits, labels, len(asked)).item() == pytest.approx(expected / len(asked), rel=1e-5)


@pytest.mark.parametrize("function", [next_token_loss, negative_entropy])
def test_padding_and_unlabelled_positions_take_no_part(function: object, labels: torch.Tensor) -> None:
    assert callable(function)
    logits = normal(ROWS, LENGTH, WORDS).requires_grad_()
    function(logits, labels, 1.0).backward()
    assert logits.grad is not None
    touched = {(row, t) for row, t in logits.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == {(row, t) for row, t, _ in targets(labels)}


def test_entropy_of_an_even_distribution_is_the_logarithm_of_the_words(labels: torch.Tensor) -> None:
    count = len(targets(labels))
    assert negative_entropy(torch.zeros(ROWS, LENGTH, WORDS), labels, count).item() == pytest.approx(-math.log(WORDS))


def test_no_label_at_all_is_a_loss_of_zero(labels: torch.Tensor) -> None:
    nothing = torch.full_like(labels, UNLABELLED)
    for function in (next_token_loss, negative_entropy):
        assert function(normal(ROWS, LENGTH, WORDS), nothing, 1.0).item() == 0


@pytest.mark.parametrize("kind", get_args(Distance))
def test_the_distance_is_the_mean_over_layers_and_unpadded_tokens(kind: Distance, mask: torch.Tensor) -> None:
    here = [normal(ROWS, LENGTH, WIDTH, seed=i) for i in range(LAYERS)]
    there = [normal(ROWS, LENGTH, WIDTH, seed=10 + i) for i in range(LAYERS)]
    terms = []
    for a, b in zip(here, there, strict=True):
        for row, length in enumerate(LENGTHS):
            for t in range(length):
                square = sum(float(d) ** 2 for d in a[row, t] - b[row, t])
                whole = sum(float(d) ** 2 for d in b[row, t])
                terms.append(
                    {
                        "l2": math.sqrt(square),
                        "mse": square / WIDTH,
                        "relative": math.sqrt(square / whole),
                        "relative_mse": square / whole,
                    }[kind]
                )
    loss = representation_distance(here, there, mask, sum(LENGTHS), kind)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("kind", get_args(Distance))
def test_hidden_states_of_padding_take_no_part(kind: Distance, mask: torch.Tensor) -> None:
    here = normal(ROWS, LENGTH, WIDTH).requires_grad_()
    representation_distance([here], [normal(ROWS, LENGTH, WIDTH, seed=1)], mask, sum(LENGTHS), kind).backward()
    assert here.grad is not None
    assert torch.equal(here.grad.abs().sum(-1) > 0, mask)


@pytest.mark.parametrize("kind", get_args(Distance))
def test_the_gradient_at_no_distance_is_zero_and_not_nan(kind: Distance, mask: torch.Tensor) -> None:
    here = normal(ROWS, LENGTH, WIDTH).requires_grad_()
    there = here.detach().clone()
    there[1, 0] += 1  # one token apart, the others not
    loss = representation_distance([here], [there], mask, sum(LENGTHS), kind)
    loss.backward()
    assert here.grad is not None
    assert torch.isfinite(here.grad).all()
    assert here.grad.abs().sum(-1).nonzero().tolist() == [[1, 0]]


def test_the_norm_is_linear_and_the_mean_square_quadratic_in_the_distance(mask: torch.Tensor) -> None:
    here, there = normal(ROWS, LENGTH, WIDTH), normal(ROWS, LENGTH, WIDTH, seed=1)

    def ratio(kind: Distance) -> float:
        once = representation_distance([here], [there], mask, 1.0, kind)
        twice = representation_distance([2 * here], [2 * there], mask, 1.0, kind)
        return float(twice / once)

    assert ratio("l2") == pytest.approx(2)
    assert ratio("mse") == pytest.approx(4)


def test_random_mapping_s_loss_is_one_minus_the_absolute_cosine(mask: torch.Tensor) -> None:
    hidden = [normal(ROWS, LENGTH, WIDTH, seed=i) for i in range(LAYERS)]
    directions = normal(ROWS, LENGTH, WIDTH, seed=20)
    terms = []
    for layer in hidden:
        for row, length in enumerate(LENGTHS):
            for t in range(length):
                a, b = layer[row, t], directions[row, t]
                terms.append(1 - abs(float(a @ b)) / float(a.norm() * b.norm()))
    loss = distance_from_directions(hidden, directions, mask, sum(LENGTHS))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert distance_from_directions([-3 * directions], directions, mask, 1.0).item() == pytest.approx(0, abs=1e-5)


def test_a_massive_token_pulls_a_relative_distance_like_any_other(mask: torch.Tensor) -> None:
    there = normal(ROWS, LENGTH, WIDTH)
    there[:, 0] *= 1000.0  # the first token of every row is a sink
    pulls = {}
    for kind in get_args(Distance):
        here = (there * 1.01).requires_grad_()
        representation_distance([here], [there], mask, 1.0, kind).backward()
        assert here.grad is not None
        of_state = here.grad.norm(dim=-1) * there.norm(dim=-1)  # what one per cent of the state would change
        pulls[kind] = float(of_state[:, 0].mean() / of_state[:, 1][mask[:, 1]].mean())
    assert pulls["relative"] == pytest.approx(1, rel=1e-3)
    assert pulls["relative_mse"] == pytest.approx(1, rel=1e-3)
    assert pulls["l2"] > 100
    assert pulls["mse"] > 10_000


def test_a_sink_is_a_token_whose_state_is_much_longer_than_its_row_s(mask: torch.Tensor) -> None:
    hidden = normal(ROWS, LENGTH, WIDTH)
    hidden[~mask] = 1e6  # padding is neither a sink nor usual
    assert torch.equal(without_sinks(mask, hidden), mask)
    hidden[0, 2] *= 1000.0
    expected = mask.clone()
    expected[0, 2] = False
    assert torch.equal(without_sinks(mask, hidden), expected)


def test_a_spared_sink_takes_no_part_in_random_mapping_s_loss(mask: torch.Tensor) -> None:
    hidden, directions = normal(ROWS, LENGTH, WIDTH), normal(ROWS, LENGTH, WIDTH, seed=1)
    hidden[:, 0] *= 1000.0
    for spared in (True, False):
        state = hidden.clone().requires_grad_()
        distance_from_directions([state], directions, mask, 1.0, spared).backward()
        assert state.grad is not None
        expected = mask.clone()
        expected[:, 0] = not spared
        assert torch.equal(state.grad.abs().sum(-1) > 0, expected)
