"""The templates beside this file, as HTML and as Markdown. Every value is escaped; only drawn SVGs are trusted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.escape import for_html, for_markdown

if TYPE_CHECKING:
    from jinja2 import Environment


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
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(str(value))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
