"""Plug-ins as data: find the presets of a folder, show their fields, set a field from text."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from holdfast.core.domain import nearest
from holdfast.core.types import HoldfastError

Plugin = TypeVar("Plugin")
Value = TypeVar("Value")

PACKAGES = ("holdfast.attacks", "holdfast.evals", "holdfast.safeguards")
"""Where plug-ins live."""


@dataclass(frozen=True)
class Field:
    """One hyperparameter of a plug-in, as `holdfast list` shows it."""

    name: str
    type: str
    value: Any
    doc: str


@cache
def collect(package: str, kind: str = "PRESETS") -> Mapping[str, Any]:
    """Every preset (or what else modules list under `kind`) of every module in a package: the folder is the list.

    Raises:
        HoldfastError: two modules have one of one name.
    """
    found: dict[str, Any] = {}
    home: dict[str, str] = {}
    for module in _modules(package):
        for name, preset in getattr(module, kind, {}).items():
            if name in found:
                raise HoldfastError(
                    f"the preset {name!r} stands in both {home[name]} and {module.__name__}; rename one"
                )
            found[name], home[name] = preset, module.__name__
    return found


def families(package: str) -> Mapping[str, list[str]]:
    """What each module of a package says it is, in its first line -> the names of its presets."""
    return {
        (module.__doc__ or module.__name__).splitlines()[0]: list(module.PRESETS)
        for module in _modules(package)
        if hasattr(module, "PRESETS")
    }


def _modules(package: str) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        yield importlib.import_module(info.name)


def pick(package: str, name: str) -> Any:
    """The preset of that name.

    Raises:
        HoldfastError: there is none; the message gives the nearest names.
    """
    presets = collect(package)
    if name not in presets:
        kind = package.rpartition(".")[2].removesuffix("s")
        raise HoldfastError(f"there is no {kind} {name!r}; {nearest(name, presets)}")
    return presets[name]


def fields(plugin: Any) -> list[Field]:
    """The fields of a plug-in with type, value and the docstring that stands under each."""
    docs = field_docs(type(plugin))
    return [
        Field(field.name, str(field.type), getattr(plugin, field.name), docs.get(field.name, ""))
        for field in dataclasses.fields(plugin)
    ]


def added(default: Value) -> Value:
    """The default of a field that its plug-in did not always have: at it, `describe` leaves the field out.

    So a plug-in that gains a field keeps the identities of all that was recorded before.
    """
    held: Value = dataclasses.field(default=default, metadata={"added": True})
    return held


def describe(plugin: Any) -> dict[str, Any]:
    """A plug-in as JSON: its class and every field, nested plug-ins likewise. It enters identities and cards.

    Fields that were `added` stand in it only where they are not at their default.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return describe(value)
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    held = {
        field.name: plain(getattr(plugin, field.name))
        for field in dataclasses.fields(plugin)
        if not ("added" in field.metadata and getattr(plugin, field.name) == field.default)
    }
    return {"class": type(plugin).__name__, **held}


def restore(package: str, described: Mapping[str, Any]) -> Any:
    """The plug-in that `describe` described: its class is looked for among the package's presets.

    What the plug-in holds is looked for among the presets of every package and what these hold.

    Raises:
        HoldfastError: there is no such class, or it refuses the fields.
    """
    kinds = {type(preset).__name__: type(preset) for preset in collect(package).values()}

    def revived(value: Any) -> Any:
        if isinstance(value, Mapping) and "class" in value:
            return _built(_nested_kinds(), value, revived)
        return tuple(map(revived, value)) if isinstance(value, list) else value

    return _built(kinds, described, revived)


def _built(kinds: Mapping[str, type], described: Mapping[str, Any], revived: Callable[[Any], Any]) -> Any:
    name = str(described.get("class"))
    if name not in kinds:
        raise HoldfastError(f"there is no class {name!r} in this holdfast; it was described by another version")
    try:
        return kinds[name](**{field: revived(value) for field, value in described.items() if field != "class"})
    except TypeError as error:
        raise HoldfastError(f"{name} has other fields in this holdfast ({error})") from error


@cache
def _nested_kinds() -> Mapping[str, type]:
    """The class of every preset, and of everything that a preset holds, by name."""

    def inside(value: Any) -> Iterator[Any]:
        if dataclasses.is_dataclass(value):
            yield value
            for field in dataclasses.fields(value):
                yield from inside(getattr(value, field.name))
        elif isinstance(value, tuple):
            for item in value:
                yield from inside(item)

    presets = [preset for package in PACKAGES for preset in collect(package).values()]
    return {type(part).__name__: type(part) for preset in presets for part in inside(preset)}


def with_settings(plugins: Mapping[str, Plugin], settings: Iterable[str]) -> dict[str, Plugin]:
    """Apply `preset.field=value` to the plug-ins of a run; values are checked against the field's type.

    Raises:
        HoldfastError: the text is not of that form, names no preset of this run or no field of it, or the value is not
            of its type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    changed = dict(plugins)
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, field = target.rpartition(".")
        if not equals or not dot:
            raise HoldfastError(f"--set {setting} is not of the form PRESET.FIELD=VALUE, such as tar.outer_steps=400")
        if name not in changed:
            raise HoldfastError(f"--set {setting}: {name!r} is not in this run; {nearest(name, changed)}")
        plugin = changed[name]
        hints = get_type_hints(type(plugin))
        names = [held.name for held in dataclasses.fields(plugin)]  # type: ignore[arg-type]
        if field not in names:
            raise HoldfastError(f"--set {setting}: {name} has no field {field!r}; {nearest(field, names)}")
        if dataclasses.is_dataclass(getattr(plugin, field)):
            raise HoldfastError(
                f"--set {setting}: {field} holds a nested plug-in; change it in Python with dataclasses.replace"
            )
        try:
            # Strict: true is no number. Finite: an identity and a record are JSON.
            exact = TypeAdapter(hints[field], config=ConfigDict(strict=True, allow_inf_nan=False))
            value = exact.validate_python(_value(text))
        except ValidationError as error:
            raise HoldfastError(f"--set {setting}: {error.errors()[0]['msg'].lower()}") from error
        changed[name] = dataclasses.replace(plugin, **{field: value})  # type: ignore[type-var]
    return changed


def _value(text: str) -> Any:
    """Python literals as themselves (numbers, None, tuples), true and false, and everything else as text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def field_docs(kind: type) -> dict[str, str]:
    """Field of a dataclass -> the docstring that stands under it."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        [body] = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for held, below in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(held, ast.AnnAssign) and isinstance(held.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[held.target.id] = " ".join(str(below.value.value).split())
    return docs
