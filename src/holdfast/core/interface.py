"""What a plug-in from outside must be before anything uses it: of one of the three interfaces, and whole."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any, ClassVar, get_origin

from holdfast.core.reading import excerpt
from holdfast.core.types import HoldfastError

INTERFACES = {"holdfast.attacks": "Attack", "holdfast.evals": "Evaluation", "holdfast.safeguards": "Safeguard"}
"""The package of each kind of plug-in -> its interface, which stands in the package's module `base`."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Safe in a shell, a path and a table; a plus sign stands between a preset and what was changed of it."""

_KEPT = ("none",)
"""names that records use for something else"""


def interface(package: str) -> type:
    """The interface of a package's plug-ins."""
    kind: type = getattr(importlib.import_module(f"{package}.base"), INTERFACES[package])
    return kind


def room_of(plugin: Any) -> str:
    """The package whose interface a plug-in has; empty where it has none."""
    return next((package for package in INTERFACES if isinstance(plugin, interface(package))), "")


def check_plugin(name: str, plugin: Any, home: str) -> None:
    """Check that a preset from outside can be used as holdfast uses presets.

    Args:
        name: of the preset.
        plugin: the preset.
        home: the module that lists it, for messages.

    Raises:
        HoldfastError: the name cannot be used, or the preset is no plug-in, no frozen dataclass, or has a method that cannot be
            called as its interface says.
    """
    if not _NAME.fullmatch(name) or name in _KEPT:
        raise HoldfastError(
            f"the preset {excerpt(name)} of {home} needs another name: letters, digits, dots and hyphens, and not none"
        )
    what, kind = f"the preset {name!r} of {home}", type(plugin)
    package = room_of(plugin)
    if not package:
        raise HoldfastError(
            f"{what} is a {kind.__name__}, which is no {', '.join(INTERFACES.values())}; extend one of these"
        )
    for base in kind.__mro__:
        for field, hint in vars(base).get("__annotations__", {}).items():
            if field not in kind.__dataclass_fields__ and not _is_class_variable(hint):
                raise HoldfastError(
                    f"{field} of {kind.__name__} in {home} is no field; decorate the class with "
                    "@dataclass(frozen=True, kw_only=True)"
                )
    for method, function in vars(interface(package)).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            parameters = list(inspect.signature(function).parameters.values())[1:]
            wanted = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
            named = {"setting": None} if len(wanted) < len(parameters) else {}
            taken = [*wanted, *("**settings" for _ in named)]
            try:
                inspect.signature(getattr(plugin, method)).bind(*wanted, **named)
            except (TypeError, ValueError) as error:
                raise HoldfastError(
                    f"{method} of {kind.__name__} in {home} must take ({', '.join(taken)}); see the interface in {package}.base"
                ) from error


def _is_class_variable(hint: Any) -> bool:
    return get_origin(hint) is ClassVar or hint is ClassVar or (isinstance(hint, str) and "ClassVar" in hint)
