"""Walking an attack as a campaign does: seeded, prepared, step by step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.core.presets import describe
from holdfast.testing import small
from holdfast.testing.walks import fresh, loaded, same, weights
from holdfast.testing.walks import walk_attack as walk

__all__ = ["distinct", "fresh", "loaded", "same", "shortened", "walk", "weights"]


def distinct(presets: Mapping[str, Any]) -> set[str]:
    """The first preset of each kind: a number makes no other code run, unless it is zero."""
    kinds: dict[str, str] = {}
    for name, preset in presets.items():
        kinds.setdefault(json.dumps(_without_numbers(describe(preset))), name)
    return set(kinds.values())


def _without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_numbers(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numbers(held) for held in value]
    return value != 0 if isinstance(value, int | float) else value


def shortened(attack: Attack, steps: int = 4, **changes: Any) -> Any:
    """The attack over a few small steps, with a warmup that leaves some of them at the whole rate."""
    return small(attack, steps, **changes)
