"""The source of a class from outside holdfast, as a hash that enters identities.

holdfast's own code carries versions that are raised when the same settings give other numbers. Nobody raises a version in code
from outside, so such a class is known by its source: an edited plug-in is another plug-in.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from holdfast.core.files import digest
from holdfast.core.types import HoldfastError

OURS = "holdfast"


def code_digest(kind: type) -> str:
    """The hash of the Python files that a class and its bases come from: 16 hexadecimal digits; empty for a class of holdfast's.

    A module that stands alone counts by its file, a module of a package by every Python file of the package but its tests. The
    hash is that of the code as it was loaded: files that are edited later count once they are loaded anew.

    Raises:
        HoldfastError: a class has no file, such as one that was defined at a prompt.
    """
    places: dict[Path, None] = {}
    for base in kind.__mro__:
        top = base.__module__.partition(".")[0]
        if top != OURS and top not in sys.stdlib_module_names:
            places |= dict.fromkeys(_places(base))
    return digest([loaded_content(place) for place in places])[:16] if places else ""


def place_of(module: ModuleType) -> Path | None:
    """The outermost package folder that a module lies in, or its own file where it stands alone; None: it has no file."""
    names = module.__name__.split(".")
    outwards = [sys.modules.get(".".join(names[:length])) for length in range(1, len(names))]
    for package in filter(None, [*outwards, module]):
        if hasattr(package, "__path__") and getattr(package, "__file__", None):
            return Path(str(package.__file__)).resolve().parent
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def is_as_loaded(place: Path) -> bool:
    """Whether the files of a place are still those that were loaded."""
    return loaded_content(place) == _content(place)


def _places(kind: type) -> list[Path]:
    """Where a class comes from; the tests of a package count for what is defined in them."""
    module = sys.modules.get(kind.__module__)
    place = place_of(module) if module else None
    if module is None or place is None or not place.exists():
        raise HoldfastError(
            f"{kind.__name__} has no source file, so that a result of it could not be told from that of another version; "
            "write it into a file and load the file with holdfast.load_plugins"
        )
    file = Path(str(module.__file__)).resolve()
    return [place, file] if place.is_dir() and _is_test(file.relative_to(place)) else [place]


Codes = dict[str, list[CodeType]]

_snapshots: dict[Path, tuple[Codes, str]] = {}
"""place -> the code of its loaded modules when its files were read, and the hash of the files"""


def loaded_content(place: Path) -> str:
    """The hash of the files of a place as its modules were loaded: read at first sight, and again when the code is another."""
    if place not in _snapshots or _changed(_snapshots[place][0]):
        modules = [module for module in list(sys.modules.values()) if _is_of(module, place)]
        codes = {module.__name__: list(_codes(module)) for module in modules}
        _snapshots[place] = codes, _content(place)
    return _snapshots[place][1]


def _changed(codes: Codes) -> bool:
    """Whether a module was loaded anew: its code objects are others then, even where they are equal."""
    for name, before in codes.items():
        now: Sequence[CodeType] = list(_codes(sys.modules[name])) if name in sys.modules else ()
        if len(now) != len(before) or any(new is not old for new, old in zip(now, before, strict=True)):
            return True
    return False


def _is_of(module: ModuleType, place: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(str(file)).resolve().is_relative_to(place)


def _codes(module: ModuleType) -> Iterator[CodeType]:
    for value in list(vars(module).values()):
        inner = list(vars(value).values()) if isinstance(value, type) and value.__module__ == module.__name__ else ()
        for member in (value, *inner):
            function = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
            if isinstance(function, FunctionType):
                yield function.__code__


def _content(place: Path) -> str:
    if place.is_file():
        return digest(_hash(place))
    files = sorted(path for path in place.rglob("*.py") if not _is_test(path.relative_to(place)))
    return digest({path.relative_to(place).as_posix(): _hash(path) for path in files})


def _is_test(path: Path) -> bool:
    """Whether a file of a package is one of its tests, whose edits change no result."""
    return "tests" in path.parts or path.name.startswith("test_") or path.name == "conftest.py"


def _hash(path: Path) -> str:
    return digest(path.read_bytes().hex())
