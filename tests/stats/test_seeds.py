from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from holdfast.stats.cells import Point
from holdfast.stats.seeds import (
    SEEDS_FOR_INTERVAL,
    Spread,
    difference,
    over_attacks,
    over_seeds,
    partners,
    t_interval,
    within_noise,
)


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


def test_a_bound_far_out_has_the_quantile_of_the_runs_that_there_are() -> None:
    gap = Spread(mean=0.2, seed_variance=0.03**2, question_variance=0.02**2, seeds=5)
    for alpha in (0.05, 0.05 / 29, 0.05 / 290):
        half = sqrt((t.isf(alpha / 2, 4) * 0.03) ** 2 + (norm.isf(alpha / 2) * 0.02) ** 2)
        assert gap.half_width(alpha) == pytest.approx(half)
        assert replace(gap, mean=half).exceeds_zero() == pytest.approx(alpha / 2)
        assert replace(gap, mean=-half).exceeds_zero() == pytest.approx(1 - alpha / 2)
    assert replace(gap, mean=5.0).exceeds_zero() < 1e-6
    assert replace(gap, seed_variance=0.0).half_width() == pytest.approx(norm.isf(0.025) * 0.02)
    assert replace(gap, question_variance=0.0).half_width() == pytest.approx(t.isf(0.025, 4) * 0.03)


def test_seeds_are_paired_where_the_other_model_has_all_of_them() -> None:
    mine, theirs = {0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.9}
    assert partners(mine, theirs, 0.4) == {0: 0.1, 1: 0.2, 2: 0.3}
    assert partners(mine, {0: 0.1, 1: 0.2}, 0.4) == {0: 0.4, 1: 0.4, 2: 0.4}
    other = over_seeds([point(value) for value in theirs.values()])
    assert other is not None
    paired, apart = difference(mine, theirs, other, 0.01), difference(mine, {}, other, 0.01, weight=0.5)
    assert (paired.mean, paired.seed_variance) == (pytest.approx(0.4), pytest.approx(0.0, abs=1e-12))
    assert apart.mean == pytest.approx(0.6 - 0.5 * other.mean)
    assert apart.seed_variance == pytest.approx(0.1**2 / 3 + (0.5 * other.seed_stderr) ** 2)
