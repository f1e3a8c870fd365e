"""JSON as typed values. An error names the field, what was expected and what is there."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ConfigDict, ValidationError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""A number is no text, true is no number, every number is finite, and an unknown field is refused."""

OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
"""The same for a table of which only some fields are read."""

_QUOTED = 40
"""characters of a wrong value that a message quotes"""


def parsed(adapter: Any, content: bytes) -> Any:
    """The JSON text `content` as the type of `adapter`, a pydantic TypeAdapter.

    Raises:
        ValidationError: the content does not fit; `misfit` says it in words.
    """
    if b"\\ud" in content.lower():  # half of a surrogate pair, which pydantic refuses and an old label may hold
        content = json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace")
    value = adapter.validate_json(content)
    if b"NaN" in content or b"Infinity" in content:  # in a field of any type
        json.loads(content, parse_constant=_refuse)
    return value


def misfit(error: ValueError, lines: bool = False) -> str:
    """The first thing that does not fit: which field, what was expected, what is there.

    Args:
        error: what reading raised.
        lines: the content is a list of tagged lines, so a field's place begins with its line's index and tag.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    place, kind, message = first["loc"], first["type"], first["msg"]
    message = message[0].lower() + message[1:]
    field = ".".join(map(str, place[2:] if lines else place))
    if lines and place:
        field = f"line {int(place[0]) + 1}" + (f", {field}" if field else "")
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        message = "no such field is known"
    elif kind not in ("json_invalid", "missing", "missing_argument", "union_tag_not_found", "union_tag_invalid"):
        value = json.dumps(first["input"], default=str, ensure_ascii=False)
        message += f", not {value if len(value) <= _QUOTED else value[: _QUOTED - 1] + '…'}"
    return f"{field}: {message}" if field else message


def newer_schema(error: ValueError) -> int | None:
    """The version of a file that was refused because its `schema` is above what this holdfast reads."""
    errors = error.errors(include_url=False) if isinstance(error, ValidationError) else []
    return next((e["input"] for e in errors if e["loc"][-1:] == ("schema",) and e["type"] == "less_than_equal"), None)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number that is ever recorded")
