"""Settings as text: `preset.path=value`, and TOML files that list presets with settings.

A path leads into nested plug-ins by field, and into tuples by place: `tar.adversaries.0.learning_rates`. A file has

    canonical = "full-adamw-1e-4"     # of a suite: the attack that every control goes through

    [[attacks]]                       # of a suite; [[stages]] of a safeguard
    preset = "full-adamw-1e-4"
    max_steps = 1000
    [[attacks]]
    preset = "full-adamw-1e-4"
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, with_config
from typing_extensions import TypedDict

from holdfast.core.domain import nearest
from holdfast.core.escape import short
from holdfast.core.presets import Path, fitting, label_of, leaves, pick
from holdfast.core.reading import STRICT, misfit, parsed_toml
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


@dataclass(frozen=True)
class Listing:
    """What a TOML file lists."""

    plugins: Mapping[str, Any]
    """label -> plug-in, in the file's order"""
    canonical: str
    """the label of the attack that every control goes through; empty: the first"""


@with_config(STRICT)
class _File(TypedDict, total=False):
    """The fields of a file; which of the two lists it has, its reader says."""

    canonical: str
    stages: list[dict[str, Any]]
    attacks: list[dict[str, Any]]


_FILE = TypeAdapter(_File)
_PACKAGE = {"stages": "holdfast.safeguards", "attacks": "holdfast.attacks"}


def read_listing(path: FilePath, what: Literal["stages", "attacks"]) -> Listing:
    """The presets that a TOML file lists, with its settings.

    Raises:
        HoldfastError: there is no such file, or it lists nothing, twice the same, or what does not fit; the message says where.
    """
    try:
        table = _FILE.validate_python(parsed_toml(path.read_bytes()))
    except OSError as error:
        raise HoldfastError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise HoldfastError(f"{path} cannot be read: {misfit(error)}") from error
    plugins: dict[str, Any] = {}
    for entry in table.get(what, ()):
        name = entry.pop("preset", None)
        if not isinstance(name, str):
            raise HoldfastError(f'{path}: each of [[{what}]] needs a line preset = "…"; holdfast list shows the names')
        preset = pick(_PACKAGE[what], name)
        plugin = with_values(preset, flat(entry), f"{path}: {name}")
        label = label_of(name, preset, plugin)
        if label in plugins:
            raise HoldfastError(f"{path} lists {label} twice; remove one, or give the two different settings")
        plugins[label] = plugin
    canonical = table.get("canonical", "") if what == "attacks" else ""
    if not plugins:
        raise HoldfastError(f"{path} lists no {what}; begin each with a line [[{what}]]")
    if canonical and canonical not in plugins:
        raise HoldfastError(f"{path}: the canonical attack is not among those listed; {nearest(canonical, plugins)}")
    return Listing(plugins, canonical)


def stages_toml(stages: Iterable[tuple[str, Any]]) -> str:
    """A TOML file of stages that `read_listing` reads: every setting that differs from the preset, by its dotted path.

    Args:
        stages: (name of the preset, safeguard).

    Raises:
        HoldfastError: a setting has no form in TOML.
    """
    tables = []
    for name, plugin in stages:
        before = leaves(pick(_PACKAGE["stages"], name))
        changes = {path: value for path, value in leaves(plugin).items() if path not in before or before[path] != value}
        lines = [f"{json.dumps('.'.join(path))} = {_toml(value, name)}" for path, value in changes.items()]
        tables.append("\n".join(["[[stages]]", f"preset = {json.dumps(name)}", *lines, ""]))
    return "\n".join(tables)


def _toml(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(item, name) for item in value)}]"
    raise HoldfastError(f"a setting of {name} is {value!r}, which TOML has no form for; give it with --set instead")


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
