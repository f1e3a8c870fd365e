"""What the site needs beyond mkdocs: the pages at the repository's root, and formulas without a script.

Pages link to each other as they do in the repository. The site's root stands for both `docs/` and the repository's root, so
`../LOG.md` becomes `LOG.md`, and the README is the home page. A formula becomes a picture that matplotlib draws.
"""

from __future__ import annotations

import base64
import html
import io
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
HOME = {"README.md": "index.md"}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\s](?:[^$\n]*[^$\s])?)\$", re.S)
# What matplotlib calls otherwise, or does without.
SPELLING = {
    r"\Big(": r"\left(",
    r"\Big)": r"\right)",
    r"\big(": "(",
    r"\big)": ")",
    r"\lVert": r"\Vert",
    r"\rVert": r"\Vert",
    r"\text": r"\mathrm",
    r"\operatorname": r"\mathrm",
    "\n": " ",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the source files outside of `docs/` that the pages link to."""
    for page in sorted(ROOT.glob("*.md")):
        name = HOME.get(page.name, page.name)
        files.append(File.generated(config, name, content=page.read_text(encoding="utf-8")))
    for name in sorted({target for file in files.documentation_pages() for target in _outside(file)}):
        if files.get_file_from_path(name) is None and (ROOT / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Aim links at the site, and draw formulas."""
    parts = CODE.split(LINK.sub(lambda found: _aimed(found, page.file.src_uri), markdown))
    return "".join(part if index % 2 else FORMULA.sub(_drawn, part) for index, part in enumerate(parts))


def _source(uri: str) -> str:
    """The path in the repository of a page of the site."""
    at_root = {site: name for name, site in HOME.items()} | {page.name: page.name for page in ROOT.glob("*.md")}
    return at_root.get(uri, f"docs/{uri}")


def _target(link: str, source: str) -> str:
    """The path in the site of what a page at `source` links to."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return HOME.get(path, path.removeprefix("docs/"))


def _outside(file: File) -> set[str]:
    source = _source(file.src_uri)
    links = [found[1] for found in LINK.findall(file.content_string) if "://" not in found[1]]
    return {_target(link, source) for link in links}


def _aimed(found: re.Match[str], uri: str) -> str:
    before, link, anchor, after = found.groups()
    if "://" in link:
        return found.group()
    aim = posixpath.relpath(_target(link, _source(uri)), posixpath.dirname(uri) or ".")
    return f"{before}{aim}{anchor or ''}{after}"


def _drawn(found: re.Match[str]) -> str:
    """The picture of a formula, on the line of the text or in a line of its own."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser, math_to_image

    whole = found.group(1) is not None
    formula = (found.group(1) or found.group(2)).strip()
    drawing = formula
    for name, other in SPELLING.items():
        drawing = drawing.replace(name, other)
    font, written = FontProperties(size=12), io.BytesIO()
    depth = MathTextParser("path").parse(f"${drawing}$", dpi=72, prop=font).depth
    math_to_image(f"${drawing}$", written, prop=font, format="svg", dpi=72)
    source = f"data:image/svg+xml;base64,{base64.b64encode(written.getvalue()).decode()}"
    label = html.escape(" ".join(formula.split()), quote=True)
    image = f'<img class="formula" alt="{label}" src="{source}" style="vertical-align: {-depth:.1f}pt">'
    return f"\n\n<p>{image}</p>\n\n" if whole else image
