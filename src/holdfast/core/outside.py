"""Plug-ins from outside holdfast: modules that the user names, or that installed packages name by entry points.

A plug-in is Python code and runs with all that the user may do. Nothing but the user's own word and what is installed makes
holdfast load one: no card, record, suite or model does.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from traceback import extract_tb
from types import CodeType, ModuleType

from holdfast.core.escape import short
from holdfast.core.files import digest
from holdfast.core.reading import LINE, excerpt, line
from holdfast.core.source import is_as_loaded, loaded_content, place_of
from holdfast.core.types import HoldfastError

GROUPS = ("holdfast.attacks", "holdfast.safeguards", "holdfast.evaluations", "holdfast.suites")
"""The groups of entry points; each entry names a module or a package. What a module lists is found in any of them."""

LISTS = ("PRESETS", "FAMILIES", "SUITES", "STUDIES")
"""What a module may list: presets of any kind, families of attack for a search, suites, studies."""


@dataclass(frozen=True)
class Outside:
    """A module from outside holdfast."""

    home: str
    """what names the module in a message: its file, or its dotted name"""
    module: ModuleType

    def listed(self, what: str) -> Mapping[str, object]:
        """The entries of one of its lists.

        Raises:
            HoldfastError: the list is no mapping with texts for names.
        """
        entries = getattr(self.module, what, {})
        if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
            raise HoldfastError(f"{what} of {self.home} must be a dictionary with a name for each entry; mend it")
        return entries


_words: dict[str, tuple[str, tuple[Outside, ...]]] = {}
"""what the user named -> the hash of its files when it was loaded, and its modules"""


def load_plugins(*words: str) -> None:
    """Load the plug-ins that the user names, in place of those named before; installed ones are loaded without being named.

    Args:
        words: each a Python file, the folder of a package, or the dotted name of a module or a package that Python can import. A
            package stands for the modules in it, as holdfast's own folders of plug-ins do.

    Raises:
        HoldfastError: there is none of that name, its code fails when it is imported, or it lists nothing.
    """
    loaded = {word: _loaded(word) for word in words}
    _words.clear()
    _words.update(loaded)


def named() -> tuple[str, ...]:
    """What the user named, in order."""
    return tuple(_words)


def loaded() -> dict[str, str]:
    """What the user named -> the hash of its files when it was loaded, for `load_same`."""
    return {word: content for word, (content, _) in _words.items()}


def load_same(expected: Mapping[str, str]) -> None:
    """Load the plug-ins that another process of this run has loaded.

    Raises:
        HoldfastError: as `load_plugins`, or a plug-in was edited meanwhile.
    """
    load_plugins(*expected)
    for word, content in loaded().items():
        if content != expected[word]:
            raise HoldfastError(
                f"the plug-in {word} was edited while the command ran; run the same command again to go on with the new code"
            )


def modules_of(word: str) -> tuple[Outside, ...]:
    """The modules that something which the user named stands for."""
    return _words[word][1]


def outside() -> tuple[Outside, ...]:
    """The modules from outside: those of installed packages, then those that the user named; each once.

    Raises:
        HoldfastError: an installed plug-in cannot be loaded.
    """
    modules = {one.module: one for one in [*installed(), *(one for _, part in _words.values() for one in part)]}
    return tuple(modules.values())


@cache
def installed() -> tuple[Outside, ...]:
    """The modules that installed packages name.

    Raises:
        HoldfastError: one cannot be loaded.
    """
    modules: dict[str, Outside] = {}
    for group in GROUPS:
        for entry in entry_points(group=group):
            modules |= {one.home: one for one in _named_by(entry)}
    return tuple(modules.values())


def _named_by(entry: EntryPoint) -> Iterator[Outside]:
    package = entry.dist.name if entry.dist else "an installed package"
    if entry.attr:
        raise HoldfastError(
            f"the entry point {entry.name} of {package} names {entry.value}; name the module alone, {entry.module}"
        )
    called = f"{entry.module}, an entry point of {package},"
    yield from _with_submodules(_imported(entry.module, called, f"uninstall {package}"))


def _loaded(word: str) -> tuple[str, tuple[Outside, ...]]:
    path = Path(word)
    if path.suffix == ".py" or path.is_dir() or "/" in word:
        module = _from_path(path)
    else:
        module = _imported(word, word, "leave it out of --plugins")
    modules = tuple(_with_submodules(module))
    if not any(hasattr(one.module, what) for one in modules for what in LISTS):
        raise HoldfastError(f"{word} lists no plug-ins; give its module {', '.join(LISTS[:-1])} or {LISTS[-1]}")
    place = place_of(module)
    return loaded_content(place) if place else "", modules


def _with_submodules(module: ModuleType) -> Iterator[Outside]:
    """The module and, where it is a package, each module in it but its tests and private ones."""
    yield Outside(_home(module), module)
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{module.__name__}."):
        name = info.name.rpartition(".")[2]
        if not name.startswith(("_", "test_")) and name not in ("tests", "conftest"):
            part = _imported(info.name, info.name, "leave it out of --plugins")
            yield Outside(_home(part), part)


def _home(module: ModuleType) -> str:
    return str(module.__file__) if module.__name__.startswith(_PREFIX) else module.__name__


def _imported(name: str, called: str, otherwise: str) -> ModuleType:
    with _loading(called, otherwise):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
    raise HoldfastError(
        f"there is no module {excerpt(name)} to take plug-ins from; give a Python file, the folder of a package, or the name of "
        "an installed module"
    )


_PREFIX = "holdfast_plugin_"
"""What the name of a module begins with that was loaded from a single file."""


def _from_path(path: Path) -> ModuleType:
    """The module of a file, or the package of a folder; loaded anew where its files are no longer those that were loaded."""
    file = (path / "__init__.py" if path.is_dir() else path).resolve()
    if not file.is_file():
        what = "is no package: it has no __init__.py" if path.is_dir() else "is not there"
        raise HoldfastError(f"the plug-in {path} {what}; give a Python file, or the folder of a package")
    folder = file.parent if path.is_dir() else None
    name = folder.name if folder else f"{_PREFIX}{path.stem}_{digest(str(file))[:8]}"
    known = sys.modules.get(name)
    if known is not None and place_of(known) == (folder or file) and is_as_loaded(folder or file):
        return known
    if folder and (not name.isidentifier() or _is_taken(name, file)):
        raise HoldfastError(f"the package {path} cannot be loaded under the name {short(name)}; rename its folder")
    for old in [old for old in sys.modules if old == name or old.startswith(f"{name}.")]:
        del sys.modules[old]
    places = [str(folder)] if folder else None
    spec = importlib.util.spec_from_file_location(
        name, file, loader=_FromSource(name, str(file)), submodule_search_locations=places
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _loading(str(path), "leave it out of --plugins"):
            spec.loader.exec_module(module)
    except HoldfastError:
        del sys.modules[name]
        raise
    return module


class _FromSource(SourceFileLoader):
    """Compiles the file itself: Python's cache of compiled files takes an edit within a second for the old file."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _is_taken(name: str, file: Path) -> bool:
    """Whether a name is that of a package elsewhere."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    return spec is not None and (spec.origin is None or Path(spec.origin).resolve() != file)


@contextmanager
def _loading(called: str, otherwise: str) -> Iterator[None]:
    """Turn whatever the code of a plug-in raises when it is imported into one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [frame for frame in extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
        at = f" in line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
        if isinstance(error, SyntaxError) and error.filename:
            at = f" in line {error.lineno} of {error.filename}"
        message = line(error.msg if isinstance(error, SyntaxError) else str(error), 2 * LINE)
        said = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise HoldfastError(f"the plug-in {called} cannot be loaded ({said}{at}); mend it, or {otherwise}") from error


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or "importlib" in filename
