"""Fields that take more than they hold."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import pytest

from holdfast.core.converted import Converted


@dataclass(frozen=True, kw_only=True)
class Place:
    folder: Converted[str | Path, Path] = Converted(Path)
    counts: Converted[list[int], tuple[int, ...]] = Converted(tuple, default=(1,))


def test_a_field_converts_wherever_its_value_comes_from() -> None:
    place = Place(folder="a/b")
    assert place == Place(folder=Path("a/b"), counts=[1])
    assert replace(place, folder="c", counts=[2, 3]) == Place(folder=Path("c"), counts=[2, 3])
    assert pickle.loads(pickle.dumps(place)) == place
    assert hash(place) == hash(Place(folder="a/b"))
    assert place.folder == Path("a/b")


def test_a_field_without_a_default_must_be_given_and_stays() -> None:
    with pytest.raises(TypeError, match="folder"):
        Place()  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        Place(folder="a").folder = "b"  # type: ignore[misc]
