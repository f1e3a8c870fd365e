"""One self-contained page about one or several campaigns, and the same as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.files import write_text
from holdfast.core.records import CampaignPlan, CellResult, read_campaign
from holdfast.core.types import HoldfastError
from holdfast.report import markdown
from holdfast.report.section import Section, section
from holdfast.report.wording import INTERNAL, PUBLIC

if TYPE_CHECKING:
    from jinja2 import Environment

SCHEMA = 2
"""of the JSON beside the page; 2 added the first page's figures, and those of `stats.audit`"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, and its verdicts."""

    html: Path
    markdown: Path
    json: Path
    sections: tuple[Section, ...]


def build_report(folders: Sequence[Path], out: Path, *, public: bool = False) -> Report:
    """Write the page to `out` (.html), and beside it .md and .json; each campaign folder is a section.

    In public attacks are named by their families, and neither settings nor commands nor single runs are shown.

    Raises:
        HoldfastError: `out` is no .html name or would overwrite a campaign, no folder is given, or one holds no campaign
            with an ended cell.
    """
    if out.suffix != ".html":
        raise HoldfastError(f"the report {out} needs a name that ends in .html; .md and .json are written beside it")
    if not folders:
        raise HoldfastError("a report needs the folder of at least one audit")
    read = [read_campaign(folder) for folder in folders]
    sections = tuple(
        section(plan, results, f"c{place}", public=public) for place, (plan, results) in enumerate(read, 1)
    )
    title = sections[0].title if len(sections) == 1 else f"{len(sections)} audits"
    report = Report(html=out, markdown=out.with_suffix(".md"), json=out.with_suffix(".json"), sections=sections)
    if any(report.json.resolve() == (folder / "campaign.json").resolve() for folder in folders):
        raise HoldfastError(f"the report's {report.json} is the campaign itself; give --out another name")
    texts = {
        report.html: _printable(_html(title, sections, public)),
        report.markdown: _printable(markdown.render(title, sections)),
        report.json: _json(read, sections, public),
    }
    for path, text in texts.items():
        write_text(path, text)
    return report


def _html(title: str, sections: Sequence[Section], public: bool) -> str:
    return (
        environment()
        .get_template("page.html.j2")
        .render(title=title, sections=sections, public=public, mark=PUBLIC if public else INTERNAL)
    )


def environment() -> Environment:
    """The templates of this folder; whatever they show is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _json(read: Sequence[tuple[CampaignPlan, list[CellResult]]], sections: Sequence[Section], public: bool) -> str:
    campaigns = []
    for (plan, _), held in zip(read, sections, strict=True):
        told: dict[str, Any] = {
            "title": held.title,
            "findings": [asdict(found) for found in held.findings],
            "facts": {fact.term: fact.value for fact in held.release.facts},
            "identity": {fact.term: fact.value for fact in held.release.identity},
            "flags": held.release.flags,
            "untested": held.release.untested,
            "models": [
                dict(zip(held.release.models.columns, (entry.text for entry in row), strict=True))
                for row in held.release.models.rows
            ],
        }
        if not public:
            told |= {
                "plan": asdict(plan),
                "comparisons": held.comparisons,
                "warnings": held.warnings,
                "suspicions": [asdict(suspicion) for suspicion in held.suspicions],
                "summary": asdict(held.summary),
                "figures": asdict(held.figures),
            }
        campaigns.append(told)
    held_out = {"schema": SCHEMA, "public": public, "campaigns": campaigns}
    return json.dumps(_plain(held_out), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """As JSON can hold it: keys are texts, and an end without a bound is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _printable(text: str) -> str:
    """The text without what UTF-8 cannot hold; a label read from JSON may carry half a character."""
    return text.encode("utf-8", "replace").decode("utf-8")
