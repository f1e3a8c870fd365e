"""One self-contained page about one or several campaigns, and the same as Markdown and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from holdfast.core.files import only_writer, write_text
from holdfast.core.outputs import claim_file
from holdfast.core.records import campaign_hash, read_campaign
from holdfast.core.release import FILE as RELEASE
from holdfast.core.release import Release, read_release
from holdfast.core.shown import html
from holdfast.core.types import HoldfastError
from holdfast.report.render import render
from holdfast.report.section import Section, section
from holdfast.report.sign_off import Signing
from holdfast.report.words.masking import sentences
from holdfast.report.words.names import INTERNAL, PUBLIC
from holdfast.report.words.suspicion import Remark, remark
from holdfast.report.words.warnings import blindness, comparison
from holdfast.stats.honesty import Masked
from holdfast.stats.masking import checked

SCHEMA = 3
"""of the JSON beside the page; 2 added the first page's figures, and those of `stats.audit`; 3 the sign-off and the tiles"""

_PAGE = re.compile(
    rb"<footer>Made by holdfast|\*%b\*|\*%b\*|^\{\s*\"schema\": \d+,\s*\"(public|groups)\":"
    % (re.escape(INTERNAL).encode(), re.escape(PUBLIC).encode())
)
"""A page in each of its three forms."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The written files, and their verdicts."""

    html: Path
    markdown: Path
    json: Path
    sections: tuple[Section, ...]

    def __repr__(self) -> str:
        said = (f"{finding.model} {finding.verdict}" for section in self.sections for finding in section.findings)
        return f"Report({str(self.html)!r}: {', '.join(said) or 'no verdict'})"

    def _repr_html_(self) -> str:
        return "".join(shown(section) for section in self.sections)


def shown(section: Section) -> str:
    """The verdicts on one audit as HTML, for a notebook."""
    columns = ("model", "verdict", "hazard before", "mean after", "worst after", "worst attack", "ability", "resisted")
    rows = [
        (row.model, row.verdict, row.before, row.mean, row.worst, row.worst_attack, row.ability, row.resisted)
        for row in section.rows
    ]
    return html(section.title, columns, rows, [finding.headline for finding in section.findings])


def build_report(
    folders: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    public: bool = False,
    release: Path | None = None,
    signing: Signing = Signing(),  # noqa: B008 - frozen
) -> Report:
    """Write the page to `out` (.html), and beside it .md and .json; each campaign folder is a section.

    In public attacks are named by their families, and neither settings nor commands nor single runs are shown.

    Args:
        folders: of campaigns.
        out: the page.
        public: whether the page is for others.
        release: `release.toml` of the one folder; None: the file of that name in each folder, where there is one.
        signing: the auditor and the date of the sign-off; what is left open is a line to fill in by hand.

    Raises:
        HoldfastError: `out` is no .html name, no page may be written there, no folder is given, or one holds no campaign
            with an ended cell; or what is stated of a release cannot be read.
    """
    out = Path(out)
    read = [Path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
    if release is not None and len(read) > 1:
        raise HoldfastError("--release is about one audit; give one folder, or keep a release.toml in each")
    if out.suffix != ".html":
        raise HoldfastError(f"the report {out} needs a name that ends in .html; .md and .json are written beside it")
    if not read:
        raise HoldfastError("a report needs the folder of at least one audit")
    claim_page(out)
    sections = tuple(
        section(
            *read_campaign(folder),
            f"c{place}",
            public=public,
            release=_stated(release or folder / RELEASE, release is None),
            records=campaign_hash(folder),
            signing=signing,
        )
        for place, folder in enumerate(read, 1)
    )
    report = Report(html=out, markdown=out.with_suffix(".md"), json=out.with_suffix(".json"), sections=sections)
    values = {
        "title": sections[0].title if len(sections) == 1 else f"{len(sections)} audits",
        "intro": "",
        "sections": sections,
        "public": public,
        "mark": PUBLIC if public else INTERNAL,
    }
    with only_writer(report.html, report.markdown, report.json):
        write_text(report.html, render("page.html.j2", **values))
        write_text(report.markdown, render("page.md.j2", **values))
        write_text(report.json, as_json(sections, public))
    return report


def _stated(path: Path, optional: bool) -> Release | None:
    """What a person states about a release; None where an optional file is not there."""
    return None if optional and not path.is_file() else read_release(path)


def claim_page(out: Path) -> None:
    """Check that a page may be written to `out`, as .html, .md and .json.

    Raises:
        HoldfastError: as `claim_file`.
    """
    for path in (out, out.with_suffix(".md"), out.with_suffix(".json")):
        claim_file(path, _PAGE)


def as_json(sections: Sequence[Section], public: bool) -> str:
    """The figures as JSON; the public form has only those of the first page."""
    campaigns = [_first_page(section) if public else _first_page(section) | _internal(section) for section in sections]
    table = {"schema": SCHEMA, "public": public, "holdfast": version("holdfast"), "campaigns": campaigns}
    return json.dumps(_plain(table), indent=1, allow_nan=False) + "\n"


def _first_page(section: Section) -> dict[str, Any]:
    page = section.page
    return {
        "title": section.title,
        "sign_off": asdict(page.sign_off),
        "findings": [asdict(finding) for finding in page.findings],
        "tiles": {one.finding.model: [asdict(tile) for tile in one.tiles] for one in page.judged},
        "facts": {fact.term: fact.value for fact in page.facts},
        "identity": {fact.term: fact.value for fact in page.identity},
        "reasons": page.reasons,
        "untested": page.untested,
        "models": page.models.records(),
    }


def _internal(section: Section) -> dict[str, Any]:
    audit = section.audit
    return {
        "plan": asdict(audit.plan),
        "comparisons": [comparison(difference, audit.summary.hazard) for difference in audit.summary.comparisons],
        "warnings": section.warnings,
        "suspicions": [
            *(asdict(remark(check, audit.summary.hazard)) for check in audit.reasons if not isinstance(check, Masked)),
            *(asdict(Remark(text=text)) for text in sentences(checked(audit.plan, audit.results))),
            *(asdict(Remark(text=text)) for text in blindness(audit.summary)),
        ],
        "summary": asdict(audit.summary),
        "figures": asdict(audit.figures),
    }


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: keys are strings, and an infinite bound is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
