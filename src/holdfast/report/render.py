"""The templates beside this file, as HTML and as Markdown. Every value is escaped; only drawn SVGs are trusted."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Fill a template with values: `.html.j2` as HTML, `.md.j2` as GitHub-flavoured Markdown."""
    environment = _environment()
    if template.endswith(".md.j2"):
        environment.finalize = _markdown
    text = environment.get_template(template).render(**values)
    if template.endswith(".md.j2"):
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # a label read from JSON may carry half a character


def escape(text: str) -> str:
    """Escape a text so that Markdown, and HTML made from Markdown, show the text unchanged on one line."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _markdown(value: Any) -> Any:
    """Escape a value for Markdown, and mark the result so that HTML escaping skips it; the output of a macro stays."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else Markup(escape(str(value)))
