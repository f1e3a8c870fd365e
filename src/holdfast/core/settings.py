"""Settings as text: `preset.path=value`, and TOML files that list presets with settings.

A path leads into nested plug-ins by field, and into tuples by place: `tar.adversaries.0.learning_rates`.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from holdfast.core.domain import nearest
from holdfast.core.escape import short
from holdfast.core.presets import Path, fitting, label_of, leaves
from holdfast.core.reading import misfit
from holdfast.core.types import HoldfastError

Plugin = TypeVar("Plugin")


def with_settings(plugins: Mapping[str, Plugin], settings: Iterable[str]) -> dict[str, Plugin]:
    """Apply `preset.path=value` to the plug-ins of a run; values are checked against their fields' types.

    All settings of one plug-in are applied together, so settings that only fit each other may come in any order.

    Returns:
        The plug-ins in their order; one that is no longer its preset is under another name (`label_of`).

    Raises:
        HoldfastError: the text is not of that form, names no preset of this run or no field of it, or the value is not
            of its type.
    """
    wanted: dict[str, dict[Path, Any]] = {name: {} for name in plugins}
    for setting in settings:
        target, equals, text = setting.partition("=")
        given = f"--set {short(setting)}"
        if not equals or "." not in target:
            raise HoldfastError(f"{given} is not of the form PRESET.FIELD=VALUE, such as tar.outer_steps=400")
        name = max((name for name in wanted if target.startswith(f"{name}.")), key=len, default=None)
        if name is None:
            unknown = target.partition(".")[0]
            raise HoldfastError(f"{given}: {short(unknown)!r} is not in this run; {nearest(unknown, wanted)}")
        wanted[name][tuple(target.removeprefix(f"{name}.").split("."))] = _value(text)
    changed = {name: with_values(plugin, wanted[name], name) for name, plugin in plugins.items()}
    return {label_of(name, plugins[name], plugin): plugin for name, plugin in changed.items()}


def with_values(plugin: Plugin, values: Mapping[Path, Any], name: str) -> Plugin:
    """The plug-in with other values at these paths.

    Args:
        plugin: a dataclass; it stays as it is.
        values: path -> value.
        name: of the plug-in, for messages.

    Raises:
        HoldfastError: a path leads nowhere, or a value is not of its field's type; the message names the path.
    """
    known = leaves(plugin)
    for path in values:
        if path not in known:
            dotted = ".".join(path)
            raise HoldfastError(f"{name} has no field {short(dotted)!r}; {nearest(dotted, map('.'.join, known))}")
    changed: Plugin = _replaced(plugin, values, name)
    return changed


def flat(table: Mapping[str, Any]) -> dict[Path, Any]:
    """A table of TOML as path -> value; keys may have dots, and lists become tuples."""
    values: dict[Path, Any] = {}
    for key, value in table.items():
        path = tuple(key.split("."))
        if isinstance(value, Mapping):
            values |= {(*path, *rest): inner for rest, inner in flat(value).items()}
        else:
            values[path] = _tuples(value)
    return values


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _replaced(part: Any, values: Mapping[Path, Any], where: str) -> Any:
    """`part` with other values at these paths below it; everything of one plug-in is replaced at once."""
    new = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
        current = new.get(name, part[int(name)] if isinstance(part, tuple) else getattr(part, name))
        below = {path[1:]: value for path, value in values.items() if path[0] == name and len(path) > 1}
        new[name] = _replaced(current, below, f"{where}.{name}")
    if isinstance(part, tuple):
        return tuple(new.get(str(place), value) for place, value in enumerate(part))
    for name, value in new.items():
        try:
            new[name] = fitting(type(part), name, value)
        except ValueError as error:
            raise HoldfastError(f"{where}.{name}: {misfit(error)}") from error
    return dataclasses.replace(part, **new)


def _value(text: str) -> Any:
    """Python literals as themselves (numbers, None, tuples), true and false, and everything else as text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deep
        return text
