"""The page as Markdown: the same verdict and tables, without pictures."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from holdfast.report.section import Section
from holdfast.report.tables import Entry, Table
from holdfast.report.wording import INTERNAL, PUBLIC


def render(title: str, sections: Sequence[Section]) -> str:
    """All sections as GitHub-flavoured Markdown; every name is escaped, so that it can be no markup."""
    lines = [f"# {escape(title)}", ""]
    for section in sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"## {escape(section.title)}", "", f"*{escape(PUBLIC if section.public else INTERNAL)}*", ""]
    for finding in section.findings:
        lines += [f"**{escape(finding.headline)}** {escape(finding.grounds)}", ""]
    release = section.release
    lines += [f"- **{escape(fact.term)}**: {escape(fact.value)}" for fact in release.facts]
    lines += ["", *(f"- {escape(sentence)}" for sentence in (*section.comparisons, *section.warnings)), ""]
    for heading, told in (
        ("Threat model and budget", release.threat),
        ("What would falsify this", release.falsifiers),
        ("Not tested", release.untested),
        ("What was audited", [f"{fact.term}: {fact.value}" for fact in release.identity]),
    ):
        lines += [f"**{heading}**", "", *(f"- {escape(text)}" for text in told), ""]
    for heading, tables in section.chapters:
        lines += ["", f"### {heading}", ""]
        for table in tables:
            lines += render_table(table)
    if section.suspicions:
        lines += ["", "### Can the attacks be believed?", ""]
        lines += [f"- {'**Suspicious.** ' if held.fires else ''}{escape(held.text)}" for held in section.suspicions]
    lines += ["", "### What resistance does not mean", ""]
    lines += [f"- {escape(sentence)}" for sentence in section.caveats]
    lines += ["", "### How to read the figures", ""]
    lines += [f"- **{escape(term)}**: {escape(meaning)}" for term, meaning in section.protocol]
    if section.notes:
        lines += ["", "### Notes", "", *(f"- {escape(note)}" for note in section.notes)]
    return [*lines, ""]


def render_table(table: Table) -> list[str]:
    """One table with its caption and notes."""
    columns = [place for place in range(len(table.columns)) if not any(row[place].strip for row in table.rows)]
    lines = [f"*{escape(table.caption)}*", ""]
    lines.append(_row([escape(table.columns[place]) for place in columns]))
    lines.append(_row(["---"] * len(columns)))
    lines += [_row([_entry(row[place]) for place in columns]) for row in table.rows]
    lines.append("")
    for note in table.notes:
        lines += [escape(note), ""]
    return lines


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _entry(entry: Entry) -> str:
    beside = ", ".join(escape(text) for text in (entry.tag, *entry.note.splitlines()) if text)
    return f"{escape(entry.text)} ({beside})" if beside and entry.text else escape(entry.text) or beside


def escape(text: str) -> str:
    """Text that Markdown and any HTML made of it show as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
