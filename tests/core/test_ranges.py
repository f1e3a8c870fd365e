"""The ranges of a plug-in's numbers: what passes, and the sentence for what does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError


@dataclass
class Settings:
    steps: int = 1
    rate: float = 1e-5
    decay: float = 0.0
    rows: int | None = None

    def check(self) -> None:
        check_settings(self, positive=("steps", "rate", "rows"), not_negative=("decay",))


def test_numbers_in_range_pass_and_none_too() -> None:
    Settings().check()
    Settings(rows=1, decay=1.0).check()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"rows": -2}, "rows must be at least 1, not -2"),
        ({"rate": 0.0}, "rate must be above 0, not 0.0"),
        ({"rate": float("nan")}, "rate must be above 0, not nan"),
        ({"decay": -0.1}, "decay must not be below 0, not -0.1"),
        ({"decay": float("nan")}, "decay must not be below 0, not nan"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=f"^{says}$"):
        Settings(**changes).check()
