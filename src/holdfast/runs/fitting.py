"""Which suites and presets fit a model of some size."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.core.model_size import Size
from holdfast.core.presets import preset_of
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.suites import canonical_of, suites

QUICK: dict[Size, str] = {"tiny": "quick-2", "small": "quick-small", "large": "quick-large"}
"""The first suite for a class of models."""


def model_size(model: str) -> Size:
    """The class of a model; tiny where the model cannot be looked at."""
    try:
        return Checkpoint(model).size
    except (HoldfastError, OSError):
        return "tiny"


def suite_for(model: str) -> str:
    """The first suite for a model of that size."""
    return QUICK[model_size(model)]


def attack_for(model: str) -> str:
    """The first attack for a model of that size."""
    suite = suite_for(model)
    return canonical_of(suite, dict.fromkeys(suites()[suite].attacks))  # type: ignore[arg-type]


def sizes_of_attack(label: str) -> frozenset[Size]:
    """The classes of models whose suites hold an attack; by its name where no suite does. Empty: unknown."""
    name = preset_of(label)
    held = {suite.size for suite in suites().values() if name in suite.attacks}
    return frozenset(held) or _by_name(name)


def sizes_of_safeguard(label: str) -> frozenset[Size]:
    """The classes of models that a safeguard's preset has settings for."""
    name = preset_of(label)
    return frozenset({"large"}) if "-paper-" in name else _by_name(name) or frozenset({"tiny"})


def misfits(size: Size, known: Iterable[tuple[str, frozenset[Size]]]) -> dict[str, frozenset[Size]]:
    """The labels whose settings are for other classes of models, each with those classes."""
    return {label: sizes for label, sizes in known if sizes and size not in sizes}


def _by_name(name: str) -> frozenset[Size]:
    sizes: tuple[Size, ...] = ("small", "large")
    return frozenset(size for size in sizes if name.endswith(f"-{size}"))
