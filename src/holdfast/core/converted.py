"""A field of a dataclass that takes more than it holds: a path as text, a model by its folder, presets by their names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Given = TypeVar("Given")
Kept = TypeVar("Kept")

_NONE = object()


def as_text(path: str | os.PathLike[str]) -> str:
    """A path or a hub id as text."""
    return os.fspath(path)


class Converted(Generic[Given, Kept]):
    """What such a field is typed and made with; the dataclass may be frozen.

    The dataclass's own `__init__` and `replace` convert, so a value is as it should be wherever it comes from.
    """

    def __init__(self, convert: Callable[[Given], Kept], default: Any = _NONE) -> None:
        """Convert what is given.

        Args:
            convert: gives what is kept; it leaves what is kept already as it is.
            default: converted likewise; without one the field must be given.
        """
        self._convert, self._default = convert, default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Converted[Given, Kept]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Kept: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        """The value; of the class itself the default, which is how a dataclass learns that there is one."""
        if instance is not None:
            return instance.__dict__[self._name]
        if self._default is _NONE:
            raise AttributeError(self._name)
        return self._default

    def __set__(self, instance: object, value: Given) -> None:
        instance.__dict__[self._name] = self._convert(value)
