"""The presets that a test is about, made small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.core.outside import load_plugins, modules_of
from holdfast.core.presets import checked_presets
from holdfast.safeguards.base import Safeguard

_SMALL = {
    "warmup_steps": 2,
    "ascent_steps": 1,
    "batch_size": 8,
    "outputs": 16,
    "rows": 40,
    "outer_warmup_steps": 2,
    "inner_steps": 8,
    "forget_batch_size": 6,
    "retain_batch_size": 6,
    "tamper_resistance_batch_size": 4,
    "persistent_adversaries": 1,
    "persist_steps": 16,
}
"""Fields that holdfast's own plug-ins have -> the most that a test needs of them."""


def presets_of(plugin: Path | str) -> Mapping[str, Any]:
    """The presets that a plug-in lists, by name; it is loaded as `--plugins` does.

    Args:
        plugin: a Python file, the folder of a package, or the name of a module.

    Raises:
        HoldfastError: it cannot be loaded, or a preset is no plug-in.
    """
    load_plugins(str(plugin))
    return {name: preset for one in modules_of(str(plugin)) for name, preset in checked_presets(one).items()}


def small(plugin: Any, steps: int = 12, **changes: Any) -> Any:
    """A plug-in over a few small steps, for the checks.

    Args:
        plugin: a preset. Its lengths and batch sizes are cut where they have the names that holdfast's own plug-ins give them.
        steps: updates of an attack; a safeguard takes three, an evaluation that trains four.
        changes: of fields, in place of these.
    """
    cut = {field: min(getattr(plugin, field), most) for field, most in _SMALL.items() if _counts(plugin, field)}
    if isinstance(plugin, Attack):
        cut["max_steps"] = steps
    elif isinstance(plugin, Safeguard):
        cut["outer_steps"] = 3
    elif hasattr(plugin, "max_steps"):
        cut |= {"max_steps": 4, **({"every": 2} if hasattr(plugin, "every") else {})}
    return replace(plugin, **{**cut, **changes})


def _counts(plugin: Any, field: str) -> bool:
    return field in plugin.__dataclass_fields__ and isinstance(getattr(plugin, field), int)


def name_of(value: Callable[..., None] | str) -> str:
    """What a check is called in the list of tests."""
    return value if isinstance(value, str) else value.__name__
