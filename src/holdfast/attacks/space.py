"""Search spaces: a family of attacks is one attack and the ranges of some of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.core.model_size import Size
from holdfast.core.outside import outside
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError


@dataclass(frozen=True)
class Log:
    """A number sampled uniformly on a logarithmic scale."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    options: tuple[Any, ...]


@dataclass(frozen=True)
class Family:
    """An attack and the ranges of the fields that a search may set."""

    attack: Attack
    """the attack before the search; the first trial"""
    space: Mapping[str, Log | Choice]
    """field -> its range; `tune.learning_rate` reaches into the fine-tuning after an edit"""
    size: Size | None = "tiny"
    """the class of models that the ranges are for; None: edits, whose ranges fit any model"""

    def built(self, settings: Mapping[str, Any]) -> Attack:
        """The attack with these fields set."""
        changed: dict[str, Any] = {}
        nested: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            outer, dot, inner = name.partition(".")
            if dot:
                nested.setdefault(outer, {})[inner] = value
            else:
                changed[name] = value
        for outer, fields in nested.items():
            changed[outer] = replace(getattr(self.attack, outer), **fields)
        return replace(self.attack, **changed)

    def preset(self) -> dict[str, Any]:
        """The searched fields of the attack before the search."""
        return self.settings(self.attack)

    def largest(self) -> Attack:
        """The attack with the greatest of each choice of numbers: most rows at once, the highest rank, most directions."""
        numbers = {
            name: [option for option in choice.options if isinstance(option, int | float)]
            for name, choice in self.space.items()
            if isinstance(choice, Choice)
        }
        return self.built({name: max(options) for name, options in numbers.items() if options})

    def settings(self, attack: Attack) -> dict[str, Any]:
        """The searched fields of an attack of this family."""

        def value_of(name: str) -> Any:
            value: Any = attack
            for part in name.split("."):
                value = getattr(value, part)
            return value

        return {name: value_of(name) for name in self.space}


def collect_families() -> Mapping[str, Family]:
    """Every family of every module of attacks, and those of plug-ins from outside: the folder is the list.

    Raises:
        HoldfastError: two modules have a family of the same name, or an entry from outside is no family of an attack's fields.
    """
    for one in outside():
        for name, family in one.listed("FAMILIES").items():
            if not isinstance(family, Family) or not isinstance(family.attack, Attack):
                raise HoldfastError(f"the family {name!r} of {one.home} is no Family of an attack; mend the module")
    return collect("holdfast.attacks", "FAMILIES")
