from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from holdfast.stats.cells import Point
from holdfast.stats.decision import side
from holdfast.stats.recovery import Anchors, Breach, first_breach, gap, recovery, threshold
from holdfast.stats.seeds import Estimate


def known(mean: float, stderr: float = 0.02) -> Estimate:
    return Estimate(mean=mean, low=mean, high=mean, question_stderr=stderr, seed_stderr=0, seeds=1, interval=None)


def curve(values: dict[int, float]) -> list[Point]:
    return [Point(step=step, value=value, stderr=0.02, n=300, complete=True) for step, value in values.items()]


def points(hazard: float, seeds: int = 5) -> dict[int, Point]:
    return {seed: Point(step=8, value=hazard, stderr=0.02, n=300, complete=True) for seed in range(seeds)}


ANCHORS = Anchors(undefended=known(1.0), floor=known(0.2))


def test_recovery_by_hand() -> None:
    assert recovery(0.2, ANCHORS) == 0
    assert recovery(1.0, ANCHORS) == 1
    assert recovery(0.6, ANCHORS) == pytest.approx(0.5)
    assert threshold(ANCHORS) == pytest.approx(0.6)


@given(st.floats(0, 1), st.floats(0.3, 1), st.floats(0, 0.2))
def test_recovery_of_a_loss_is_that_of_its_mirror_image(hazard: float, undefended: float, floor: float) -> None:
    plain = Anchors(undefended=known(undefended, 0.001), floor=known(floor, 0.001))
    loss = Anchors(undefended=known(-undefended, 0.001), floor=known(-floor, 0.001), sign=-1)
    assert recovery(-hazard, loss) == pytest.approx(recovery(hazard, plain))
    one, other = gap(points(-hazard), loss), gap(points(hazard), plain)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.mean == pytest.approx(other.mean, abs=1e-9)


@pytest.mark.parametrize(
    "anchors",
    [
        replace(ANCHORS, undefended=None),
        replace(ANCHORS, floor=None),
        replace(ANCHORS, undefended=known(0.25)),  # within noise of the floor
        replace(ANCHORS, undefended=known(0.0)),  # knows less than the floor
    ],
)
def test_without_a_gap_nothing_is_estimable(anchors: Anchors) -> None:
    assert recovery(0.6, anchors) is None
    assert threshold(anchors) is None
    assert gap(points(0.6), anchors) is None
    assert side(None) == "not estimable"


def test_a_side_is_claimed_only_beyond_the_interval() -> None:
    # Five alike seeds: the questions of the model and of both ends are all the error there is.
    margin = norm.ppf(0.975) * (0.02**2 + (0.5 * 0.02) ** 2 + (0.5 * 0.02) ** 2) ** 0.5
    assert side(gap(points(0.6 + margin + 1e-6), ANCHORS)) == "above"
    assert side(gap(points(0.6 + margin - 1e-6), ANCHORS)) == "within noise"
    assert side(gap(points(0.6 - margin + 1e-6), ANCHORS)) == "within noise"
    assert side(gap(points(0.6 - margin - 1e-6), ANCHORS)) == "below"


def test_below_five_seeds_no_side_is_claimed_unless_nothing_is_drawn() -> None:
    few = points(0.95, seeds=4)
    assert side(gap(few, ANCHORS)) == "too few seeds"
    assert side(gap(points(0.95, seeds=1), ANCHORS, draws=False)) == "above"


def test_pairing_takes_out_what_a_seed_does_to_both_models() -> None:
    shifts = dict(enumerate((-0.1, 0.05, 0.0, 0.1, -0.05)))
    held = {
        seed: replace(point, value=point.value + shift / 2)
        for (seed, point), shift in zip(points(0.4).items(), shifts.values(), strict=True)
    }
    paired = replace(ANCHORS, floor_by_seed={seed: 0.2 + shift for seed, shift in shifts.items()})
    alone, together = gap(held, ANCHORS), gap(held, paired)
    assert alone is not None
    assert together is not None
    assert alone.seed_variance > 1e-4
    assert together.seed_variance == pytest.approx(0.0, abs=1e-12)
    assert together.mean == pytest.approx(alone.mean)


def test_the_first_breach_is_an_interval_of_milestones() -> None:
    assert first_breach(curve({0: 0.5, 8: 0.3, 64: 0.6, 160: 0.2}), 0.6, 1) == Breach(after=8, by=64)
    assert first_breach(curve({0: 0.3, 8: 0.7}), 0.6, 1) == Breach(after=0, by=8)
    assert first_breach(curve({0: 0.5, 8: 0.59}), 0.6, 1) is None
    assert first_breach(curve({0: 0.9, 8: 0.59}), 0.6, 1) == Breach(after=0, by=0)  # before any attack
    assert first_breach(curve({0: 3.0, 8: 2.0, 64: 1.2}), 1.5, -1) == Breach(after=8, by=64)
