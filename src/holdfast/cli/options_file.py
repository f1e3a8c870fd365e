"""A verb's options from a TOML file: a key is an option without its dashes, and the command line goes before the file.

Paths are relative to the file. What is asked of an option, such as a range, is asked of its key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, get_args, get_type_hints

import typer

from holdfast.cli.options import RENAMED
from holdfast.cli.terminal import fail

if TYPE_CHECKING:
    from collections.abc import Mapping

_ONLY_ASK = ("help", "status", "plan", "as_json", "file")
"""options that belong to one call and not to the run"""


def read_options(context: typer.Context, path: Optional[Path]) -> Optional[Path]:
    """Make the options in a file the verb's defaults, before any option is looked at.

    Raises:
        HoldfastError: the file cannot be read, a key is no option, or a value is of another type; the message names the key.
    """
    if path is None or context.resilient_parsing:
        return path
    # The signature of the verb says of which type an option is.
    types = {name: _type(hint) for name, hint in get_type_hints(context.command.callback).items()}
    options = {
        option.opts[-1].lstrip("-"): (str(option.name), types[str(option.name)])
        for option in context.command.params
        if option.name in types and option.name not in _ONLY_ASK
    }
    values = _read(path, {key: kind for key, (_, kind) in options.items()}, context.info_name or "")
    context.default_map = {options[key][0]: _beside(path.parent, *options[key], value) for key, value in values.items()}
    return path


def _read(path: Path, options: Mapping[str, type], verb: str) -> dict[str, Any]:
    """The file's table, each value of its option's type."""
    from pydantic import TypeAdapter, with_config
    from typing_extensions import TypedDict

    from holdfast.core.domain import nearest
    from holdfast.core.reading import STRICT, excerpt, misfit, parsed_toml

    try:
        table = parsed_toml(path.read_bytes())
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except ValueError as error:
        fail(f"{path} is not valid TOML: {error}")
    for key in table:
        if RENAMED.get(key) in options:
            fail(f"{path}: {key} is now called {RENAMED[key]}; holdfast {verb} --help says what it takes")
        if key not in options:
            fail(f"{path}: {excerpt(key)} is no option of holdfast {verb}; {nearest(key, options)}")
    kinds = {key: str if kind is Path else kind for key, kind in options.items()}
    typed: Any = TypedDict  # mypy knows no dictionary whose keys are found when it is made
    adapter: Any = TypeAdapter(with_config(STRICT)(typed("Options", kinds, total=False)))
    try:
        read: dict[str, Any] = adapter.validate_python(table)
        return read
    except ValueError as error:
        fail(f"{path}: {misfit(error)}")


def _type(hint: Any) -> Any:
    """The type of an option's value, whether the option may be left out or not."""
    inner = [one for one in get_args(hint) if one is not type(None)]
    return inner[0] if type(None) in get_args(hint) else hint


def _beside(folder: Path, name: str, kind: type, value: Any) -> Any:
    """A value whose paths are relative to the folder: all of a path's option, else a text that names something there."""
    if isinstance(value, list):
        return [_beside(folder, name, kind, one) for one in value]
    if not isinstance(value, str):
        return value
    path = Path(os.path.normpath(folder / Path(value).expanduser()))
    return str(path) if kind is Path or _is_there(path, name) else value


def _is_there(path: Path, name: str) -> bool:
    """Whether a text that need not be a path names something beside the file."""
    from holdfast.runs.suites import suites

    if name in ("precision", "device", "milestones", "settings", "executor", "cluster"):
        return False
    if name == "suite" and path.name in suites():
        return False
    return path.exists()
