from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.stats.cells import Point
from holdfast.stats.recovery import Anchors, Breach, first_breach, recovery, side, threshold
from holdfast.stats.seeds import Estimate


def known(mean: float, stderr: float = 0.02) -> Estimate:
    return Estimate(mean=mean, low=mean, high=mean, question_stderr=stderr, seed_stderr=0, seeds=1, interval=None)


def curve(values: dict[int, float]) -> list[Point]:
    return [Point(step=step, value=value, stderr=0.02, n=300, complete=True) for step, value in values.items()]


ANCHORS = Anchors(undefended=known(1.0), floor=known(0.2), source="the never-exposed model under the same attack")


def test_recovery_by_hand() -> None:
    assert recovery(0.2, ANCHORS) == 0
    assert recovery(1.0, ANCHORS) == 1
    assert recovery(0.6, ANCHORS) == pytest.approx(0.5)
    assert threshold(ANCHORS) == pytest.approx(0.6)


@given(st.floats(0, 1), st.floats(0.3, 1), st.floats(0, 0.2))
def test_recovery_of_a_loss_is_that_of_its_mirror_image(hazard: float, undefended: float, floor: float) -> None:
    plain = Anchors(undefended=known(undefended, 0.001), floor=known(floor, 0.001), source="chance")
    loss = Anchors(undefended=known(-undefended, 0.001), floor=known(-floor, 0.001), source="chance", sign=-1)
    assert recovery(-hazard, loss) == pytest.approx(recovery(hazard, plain))
    assert side(known(-hazard), loss) == side(known(hazard), plain)


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
    assert side(known(0.6), anchors) == "not estimable"


def test_a_side_is_claimed_only_beyond_noise() -> None:
    margin = 2 * (0.02**2 + (0.5 * 0.02) ** 2 + (0.5 * 0.02) ** 2) ** 0.5
    assert side(known(0.6 + margin + 1e-6), ANCHORS) == "above"
    assert side(known(0.6 + margin - 1e-6), ANCHORS) == "within noise"
    assert side(known(0.6 - margin + 1e-6), ANCHORS) == "within noise"
    assert side(known(0.6 - margin - 1e-6), ANCHORS) == "below"


def test_the_first_breach_is_an_interval_of_milestones() -> None:
    assert first_breach(curve({0: 0.9, 8: 0.3, 64: 0.6, 160: 0.2}), 0.6, 1) == Breach(after=8, by=64)
    assert first_breach(curve({0: 0.3, 8: 0.7}), 0.6, 1) == Breach(after=0, by=8)
    assert first_breach(curve({0: 0.9, 8: 0.59}), 0.6, 1) is None
    assert first_breach(curve({0: 3.0, 8: 2.0, 64: 1.2}), 1.5, -1) == Breach(after=8, by=64)
