"""What lies in files, as values: whatever a parser raises becomes one sentence that quotes at most a line of the input."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

from pydantic import ConfigDict, ValidationError

from holdfast.core.escape import short
from holdfast.core.types import HoldfastError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""A number is no text, true is no number, every number is finite, and an unknown field is refused."""

OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
"""The same for a table of which only some fields are read."""

LINE = 100
"""characters of the input that a sentence quotes"""

_QUOTED = 40
"""characters of a wrong value that a message quotes"""

_NOT_FINITE = re.compile(rb"NaN|Infinity|[eE]\+?\d{3}")
"""JSON in which there may be a number that is none"""


def line(text: str, length: int = LINE) -> str:
    """The first line of a text, `length` characters of it at most."""
    return short(next((part.strip() for part in text.splitlines() if part.strip()), ""), length)


def excerpt(value: object) -> str:
    """A value as Python writes it, to be quoted in a sentence."""
    return short(repr(value), LINE)


@contextmanager
def parsing() -> Iterator[None]:
    """The boundary around a parser: whatever the parser raises is raised as a ValueError that says in words what is wrong.

    Raises:
        ValueError: the parser failed, for whatever reason but a file that cannot be read.
    """
    try:
        yield
    except (ValidationError, HoldfastError, OSError, MemoryError):
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except Exception as error:
        if "set_int_max_str_digits" in str(error):
            raise ValueError("a number in it has too many digits") from error
        raise ValueError(line(str(error)) or type(error).__name__) from error


def parsed_json(content: bytes | str) -> Any:
    """JSON text as plain values; bytes are UTF-8, with or without a byte order mark. NaN and Infinity stay what they are.

    Raises:
        ValueError: it is none, in words.
    """
    with parsing():
        return json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content, parse_float=_finite)


def parsed_toml(content: bytes) -> dict[str, Any]:
    """TOML as plain values; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is none, in words.
    """
    with parsing():
        return tomllib.loads(content.decode("utf-8-sig"))


def parsed(adapter: Any, content: bytes) -> Any:
    """The JSON text `content` as the type of `adapter`, a pydantic TypeAdapter.

    Raises:
        ValueError: the content does not fit; `misfit` says it in words.
    """
    if b"\\ud" in content.lower():  # half of a surrogate pair, which pydantic refuses and an old label may hold
        content = json.dumps(parsed_json(content), ensure_ascii=False).encode("utf-8", "replace")
    value = adapter.validate_json(content)
    if _NOT_FINITE.search(content):  # in a field of any type
        json.loads(content, parse_constant=_refuse, parse_float=_finite)
    return value


def misfit(error: ValueError, lines: bool = False) -> str:
    """The first thing that does not fit: which field, what was expected, what is there.

    Args:
        error: what reading raised.
        lines: the content is a list of tagged lines, so a field's place begins with its line's index and tag.
    """
    if not isinstance(error, ValidationError):
        return line(str(error), 2 * LINE)
    first = error.errors(include_url=False, include_context=False)[0]
    place, kind, message = first["loc"], first["type"], line(first["msg"], 2 * LINE)
    message = message[0].lower() + message[1:]
    field = line(".".join(map(str, place[2:] if lines else place)))
    if lines and place:
        field = f"line {int(place[0]) + 1}" + (f", {field}" if field else "")
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        message = "no such field is known"
    elif kind not in ("json_invalid", "missing", "missing_argument", "union_tag_not_found", "union_tag_invalid"):
        value = json.dumps(first["input"], default=str, ensure_ascii=False, skipkeys=True)
        message += f", not {line(value, _QUOTED)}"
    return f"{field}: {message}" if field else message


def newer_schema(error: ValueError) -> int | None:
    """The version of a file that was refused because its `schema` is above what this holdfast reads."""
    errors = error.errors(include_url=False) if isinstance(error, ValidationError) else []
    return next((e["input"] for e in errors if e["loc"][-1:] == ("schema",) and e["type"] == "less_than_equal"), None)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that is ever recorded")


def _finite(text: str) -> float:
    if isfinite(number := float(text)):
        return number
    raise ValueError(f"{line(text, _QUOTED)} is too large a number")
