from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.stats.cells import Point
from holdfast.stats.seeds import SEEDS_FOR_INTERVAL, over_attacks, over_seeds, t_interval, within_noise


def point(value: float, stderr: float = 0.02) -> Point:
    return Point(step=8, value=value, stderr=stderr, n=300, complete=True)


def test_mean_spread_and_error_by_hand() -> None:
    estimate = over_seeds([point(0.2), point(0.4)])
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high, estimate.seeds) == (pytest.approx(0.3), 0.2, 0.4, 2)
    deviation = sqrt(2 * 0.1**2)  # of two values 0.1 from their mean, over n - 1
    assert estimate.seed_stderr == pytest.approx(deviation / sqrt(2))
    assert estimate.stderr == pytest.approx(sqrt(0.02**2 + 0.1**2))
    assert over_seeds([]) is None


def test_one_seed_has_the_questions_error_only() -> None:
    estimate = over_seeds([point(0.2)])
    assert estimate is not None
    assert estimate.stderr == 0.02
    assert estimate.interval is None


def test_the_interval_is_student_t_and_needs_five_seeds() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert t_interval(values[: SEEDS_FOR_INTERVAL - 1]) is None
    found = t_interval(values)
    assert found is not None
    half = 2.7764451 * sqrt(0.1 / 4) / sqrt(5)  # the 97.5 % quantile of Student's t with 4 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(0.3 - half, abs=1e-6), pytest.approx(0.3 + half, abs=1e-6))


def test_over_attacks_the_questions_error_stays_and_the_seeds_error_shrinks() -> None:
    pair = over_seeds([point(0.2), point(0.4)])
    assert pair is not None
    mean = over_attacks([pair, pair, pair, pair])
    assert mean is not None
    assert mean.question_stderr == pytest.approx(pair.question_stderr)
    assert mean.seed_stderr == pytest.approx(pair.seed_stderr / 2)
    assert over_attacks([]) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_mean_lies_between_its_seeds(values: list[float]) -> None:
    estimate = over_seeds([point(value) for value in values])
    assert estimate is not None
    assert estimate.low - 1e-12 <= estimate.mean <= estimate.high + 1e-12
    assert (estimate.interval is None) == (len(values) < SEEDS_FOR_INTERVAL)
    assert estimate.stderr >= 0.02


def test_noise_is_two_combined_errors() -> None:
    assert within_noise(0.099, 0.03, 0.04)
    assert not within_noise(-0.101, 0.03, 0.04)
