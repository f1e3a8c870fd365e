"""Plug-ins as data: find the presets of a folder, show their fields, describe and restore them."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from holdfast.core.domain import nearest
from holdfast.core.files import digest
from holdfast.core.interface import INTERFACES, check_plugin, room_of
from holdfast.core.outside import Outside, outside
from holdfast.core.reading import STRICT, excerpt, line, misfit
from holdfast.core.source import code_digest
from holdfast.core.types import HoldfastError

Plugin = TypeVar("Plugin")
Value = TypeVar("Value")

Path = tuple[str, ...]
"""Where a field lies in a plug-in and the plug-ins inside it."""

PACKAGES = tuple(INTERFACES)
"""Where plug-ins live."""


@dataclass(frozen=True)
class Field:
    """One hyperparameter of a plug-in, as `holdfast list` shows it."""

    name: str
    type: str
    value: Any
    doc: str


def collect(package: str, kind: str = "PRESETS") -> Mapping[str, Any]:
    """Every preset (or what else modules list under `kind`) of every module in a package: the folder is the list.

    What modules from outside list comes with it, a preset where its kind belongs.

    Raises:
        HoldfastError: two modules have an entry of the same name, or a plug-in from outside is none.
    """
    return _collected(package, kind, outside() if package in INTERFACES else ())


@cache
def _collected(package: str, kind: str, others: tuple[Outside, ...]) -> Mapping[str, Any]:
    lists = [(module.__name__, getattr(module, kind, {})) for module in _modules(package)]
    lists += [(one.home, _presets(one, package) if kind == "PRESETS" else one.listed(kind)) for one in others]
    entries = merged(lists, _ENTRY.get(kind, "preset"))
    if kind == "PRESETS" and others:
        # A description names classes, and is restored by their names.
        merged(_classes(map(type, entries.values()), others), "class")
    return entries


def _classes(kinds: Iterable[type], others: tuple[Outside, ...]) -> Iterator[tuple[str, dict[str, type]]]:
    """Each class by its name, with its home: the two names that must not be taken twice."""
    homes = {one.module.__name__: one.home for one in others}
    for kind in kinds:
        yield homes.get(kind.__module__, kind.__module__), {kind.__name__: kind}


_ENTRY = {"FAMILIES": "family", "SUITES": "suite", "STUDIES": "study"}
"""what an entry of a list is called; others are presets"""


def merged(lists: Iterable[tuple[str, Mapping[str, Any]]], what: str) -> dict[str, Any]:
    """The entries of several lists as one.

    Args:
        lists: (home, entries) each; `home` names the list in a message.
        what: an entry is, for the message.

    Raises:
        HoldfastError: two lists have an entry of the same name; a list that repeats another's entry is no second.
    """
    entries: dict[str, Any] = {}
    homes: dict[str, str] = {}
    for home, listed in lists:
        for name, entry in listed.items():
            if name in entries and entries[name] is not entry:
                raise HoldfastError(f"the {what} {name!r} stands in both {homes[name]} and {home}; rename one")
            entries.setdefault(name, entry)
            homes.setdefault(name, home)
    return entries


def _presets(one: Outside, package: str) -> dict[str, Any]:
    """The presets of a module from outside that are of a package's kind."""
    return {name: preset for name, preset in checked_presets(one).items() if room_of(preset) == package}


def checked_presets(one: Outside) -> Mapping[str, Any]:
    """The presets of a module from outside, of every kind.

    Raises:
        HoldfastError: one of them is no plug-in of any kind.
    """
    presets = one.listed("PRESETS")
    for name, preset in presets.items():
        check_plugin(name, preset, one.home)
        try:
            json.dumps(describe(preset), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise HoldfastError(
                f"a field of the preset {name!r} of {one.home} cannot be written down ({line(str(error))}); give texts, finite "
                "numbers, None, tuples of these, or dataclasses"
            ) from error
    return presets


def families(package: str) -> Mapping[str, list[str]]:
    """The first docstring line of each module of a package -> the names of its presets; modules from outside last."""
    ours = {
        (module.__doc__ or module.__name__).splitlines()[0]: list(module.PRESETS)
        for module in _modules(package)
        if hasattr(module, "PRESETS")
    }
    theirs = {
        f"{next(iter((one.module.__doc__ or '').splitlines()), '') or 'No description'} ({one.home})": names
        for one in outside()
        if (names := list(_presets(one, package)))
    }
    return {**ours, **theirs}


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
        raise HoldfastError(f"there is no {kind} {excerpt(name)}; {nearest(name, presets)}")
    return presets[name]


def fields(plugin: Any) -> list[Field]:
    """The fields of a plug-in with type, value and the docstring that stands under each."""
    docs = field_docs(type(plugin))
    return [
        Field(field.name, str(field.type), getattr(plugin, field.name), docs.get(field.name, ""))
        for field in dataclasses.fields(plugin)
    ]


def added(default: Value) -> Value:
    """The default of a field that its plug-in did not always have: `describe` leaves the field out at this default.

    So a plug-in that gains a field keeps the identities of all that was recorded before.
    """
    field: Value = dataclasses.field(default=default, metadata={"added": True})
    return field


def apart(default: Value) -> Value:
    """The default of a field that changes no number, such as where something lies: `describe` leaves the field out."""
    field: Value = dataclasses.field(default=default, metadata={"apart": True})
    return field


def describe(plugin: Any) -> dict[str, Any]:
    """A plug-in as JSON: its class and every field, nested plug-ins likewise. The JSON enters identities and cards.

    An `added` field is left out at its default, and so is version 1; an `apart` field is left out always. A class
    from outside holdfast comes with the hash of its source.

    Raises:
        HoldfastError: a class from outside has no source file.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return describe(value)
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    values = {
        field.name: plain(getattr(plugin, field.name))
        for field in dataclasses.fields(plugin)
        if "apart" not in field.metadata
        and not ("added" in field.metadata and getattr(plugin, field.name) == field.default)
    }
    kind = type(plugin)
    if "version" not in values and (version := getattr(kind, "version", 1)) != 1:
        values["version"] = version
    if code := code_digest(kind):
        values[SOURCE] = code
    return {"class": kind.__name__, **values}


SOURCE = "source code"
"""The key of a description under which the hash of the source stands; no field can have a name of two words."""


def restore(package: str, described: Mapping[str, Any], *, older: bool = False) -> Any:
    """The plug-in that `describe` described: the package's presets are searched for its class.

    The presets of every package, and the plug-ins in them, are searched for the classes of nested plug-ins.

    Args:
        package: of the plug-in.
        described: by this holdfast or an older one.
        older: leave out fields that a class has no longer, where what they changed does not matter.

    Raises:
        HoldfastError: there is no such class, or it has no such field, or a value is not of its field's type.
    """
    kinds = {type(preset).__name__: type(preset) for preset in collect(package).values()}

    def revived(value: Any) -> Any:
        if isinstance(value, Mapping) and "class" in value:
            return _built(_nested_kinds(), value, revived, older)
        return tuple(map(revived, value)) if isinstance(value, list) else value

    return _built(kinds, described, revived, older)


def _built(kinds: Mapping[str, type], described: Mapping[str, Any], revived: Callable[[Any], Any], older: bool) -> Any:
    name = described.get("class") if isinstance(described, Mapping) else None
    if not isinstance(name, str) or name not in kinds:
        raise HoldfastError(f"there is no class {excerpt(name)} in this holdfast; it was described by another version")
    known = {field.name for field in dataclasses.fields(kinds[name])}
    values = {
        field: revived(value)
        for field, value in described.items()
        # What a class says of itself is no field: the plug-in is restored as its class is now.
        if field not in ("class", SOURCE) and not (field == "version" and field not in known)
    }
    if older:
        values = {field: values[field] for field in values.keys() & known}
    for field, value in values.items():
        try:
            values[field] = fitting(kinds[name], field, value)
        except ValueError as error:
            raise HoldfastError(f"{field} of {name}: {misfit(error)}") from error
        except KeyError as error:
            raise HoldfastError(f"{name} has no field {excerpt(field)} in this holdfast") from error
    try:
        return kinds[name](**values)
    except TypeError as error:
        raise HoldfastError(f"{name} has other fields in this holdfast ({line(str(error))})") from error


def _nested_kinds() -> Mapping[str, type]:
    """The class of every preset, and of everything that a preset holds, by name."""
    return _kinds_within(outside())


@cache
def _kinds_within(others: tuple[Outside, ...]) -> Mapping[str, type]:

    def inside(value: Any) -> Iterator[Any]:
        if dataclasses.is_dataclass(value):
            yield value
            for field in dataclasses.fields(value):
                yield from inside(getattr(value, field.name))
        elif isinstance(value, tuple):
            for item in value:
                yield from inside(item)

    presets = [preset for package in PACKAGES for preset in collect(package).values()]
    kinds = [type(part) for preset in presets for part in inside(preset)]
    return merged(_classes(kinds, others), "class")


def leaves(plugin: Any) -> dict[Path, Any]:
    """Path -> value of everything in a plug-in that holds no further plug-in: `("retain", "layers")` -> None.

    A path goes by field through plug-ins, and by place through tuples of plug-ins.
    """

    def inside(part: Any) -> list[tuple[str, Any]]:
        if dataclasses.is_dataclass(part):
            return [(field.name, getattr(part, field.name)) for field in dataclasses.fields(part)]
        if isinstance(part, tuple) and any(map(dataclasses.is_dataclass, part)):
            return [(str(place), value) for place, value in enumerate(part)]
        return []

    found: dict[Path, Any] = {}
    for name, value in inside(plugin):
        below = {(name, *rest): leaf for rest, leaf in leaves(value).items()}
        found |= below or {(name,): value}
    return found


CHANGED = "+"
"""What stands between a preset's name and its changed fields in a label."""

_LABEL_LENGTH = 48
"""characters of changed fields that a label holds; where there would be more, their number and a hash stand for them"""


def label_of(name: str, preset: Any, plugin: Any) -> str:
    """The name of a plug-in that was made from a preset: the preset's name, then every field that differs.

    `full-adamw-1e-3+learning_rate=1e-05`, or `full-adamw-1e-3+3-fields-5f2a1c`. A label is safe in shells, paths and Markdown.
    """
    before, after = leaves(preset), leaves(plugin)
    changes = {".".join(path): value for path, value in after.items() if path not in before or before[path] != value}
    if not changes and before.keys() == after.keys():
        return name
    suffix = CHANGED.join(f"{path}={value}" for path, value in changes.items())
    if len(suffix) > _LABEL_LENGTH or re.search(r"[^\w.=+-]", suffix, re.ASCII):
        count = "1-field" if len(changes) == 1 else f"{len(changes)}-fields"
        suffix = f"{count}-{digest(describe(plugin))[:6]}"
    return f"{name}{CHANGED}{suffix}"


def preset_of(label: str) -> str:
    """The name of the preset that a label was made from."""
    return label.partition(CHANGED)[0]


def fitting(kind: type, field: str, value: Any) -> Any:
    """A value as the field of a plug-in holds it.

    Raises:
        ValueError: the value is of another type.
        KeyError: there is no such field.
    """
    from pydantic import TypeAdapter

    hint = get_type_hints(kind)[field]
    config = None if dataclasses.is_dataclass(hint) else STRICT
    return TypeAdapter(hint, config=config).validate_python(value)


def field_docs(kind: type) -> dict[str, str]:
    """Field of a dataclass -> the docstring under the field."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        [body] = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(below.value.value).split())
    return docs
