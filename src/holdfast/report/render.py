"""The templates beside this file, as HTML and as Markdown. Every value is escaped; only drawn SVGs are trusted.

A number keeps its unit on its line: the space between the two does not break. `Verbatim` text keeps its spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.escape import for_html, for_markdown

if TYPE_CHECKING:
    from jinja2 import Environment

_UNIT = re.compile(
    r"(?<=[0-9⁰¹²³⁴⁵⁶⁷⁸⁹]) (?=(?:%|×|→|FLOPs|GB|GiB|h|min|s|nats|points?|steps?|updates?|times|seeds?|tokens)(?![\w-]))"
    r"|(?<=[×≥≤±]) (?=\d)"
)
"""A space before a unit, or after a sign that belongs to a number."""


class Verbatim(str):
    """Text that a reader copies, such as a command."""

    __slots__ = ()


def render(template: str, **values: Any) -> str:
    """Fill a template with values: `.html.j2` as HTML, `.md.j2` as GitHub-flavoured Markdown."""
    markdown = template.endswith(".md.j2")
    environment = _environment(for_markdown if markdown else for_html)
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" if markdown else text


def _environment(escape: Callable[[str], str]) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        # What is escaped is marked so, and the output of a macro is; all else is text.
        finalize=lambda value: value if isinstance(value, Markup) else Markup(_written(value, escape)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _written(value: object, escape: Callable[[str], str]) -> str:
    text = escape(str(value))
    return text if isinstance(value, Verbatim) else _UNIT.sub("\N{NO-BREAK SPACE}", text)
