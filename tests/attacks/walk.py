"""Walking an attack as a campaign does: seeded, prepared, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.testing import small
from holdfast.testing.walks import fresh, loaded, same, weights
from holdfast.testing.walks import walk_attack as walk

__all__ = ["distinct", "fresh", "loaded", "same", "shortened", "walk", "weights"]


def distinct(presets: Mapping[str, Any]) -> set[str]:
    """The presets that bring a class, or a setting that makes other code run, which none before has; a number does so at zero.

    A setting belongs to the class that declares it, so one of several safeguards that share it will do.
    """
    seen, kept = set[Any](), set[str]()
    for name, preset in presets.items():
        here = set(_settings(preset, ()))
        if not here <= seen:
            kept.add(name)
            seen |= here
    return kept


def _settings(value: Any, where: tuple[str, ...]) -> Iterator[Any]:
    if is_dataclass(value):
        yield where, type(value)
        for field in fields(value):
            owner = next(
                kind for kind in reversed(type(value).__mro__) if field.name in vars(kind).get("__annotations__", {})
            )
            yield from _settings(getattr(value, field.name), (owner.__name__, field.name))
    elif isinstance(value, list | tuple):
        yield where, bool(value)
        for held in value:
            yield from _settings(held, (*where, "each"))
    else:
        yield where, value != 0 if isinstance(value, int | float) else value


def shortened(attack: Attack, steps: int = 4, **changes: Any) -> Any:
    """The attack over a few small steps, with a warmup that leaves some of them at the whole rate."""
    return small(attack, steps, **changes)
