from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from holdfast.core.types import HoldfastError
from holdfast.report.blocks import Gallery
from holdfast.report.page import Report, build_report
from tests.report.synthetic import audited, cell, plan, record, write

HOSTILE = "<script>alert(1)</script>|`x`[a](javascript:b) $\\frac{1}{0}$"


class Tags(HTMLParser):
    """What a page is made of."""

    void = frozenset({"meta", "br", "line", "rect", "path", "use", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)
        if tag in self.void:
            self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def tags(page: Path) -> Tags:
    parser = Tags()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("audit")
    return build_report([write(folder / "records", *audited(6))], folder / "report.html")


def test_the_page_is_one_file_that_needs_nothing_else(report: Report) -> None:
    text, parsed = report.html.read_text(encoding="utf-8"), tags(report.html)
    assert "script" not in parsed.tags
    assert all(link.startswith("#") for link in parsed.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert 'name="viewport"' in text
    assert "@media print" in text


def test_ids_are_unique_and_links_lead_somewhere(report: Report) -> None:
    parsed = tags(report.html)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)


def test_the_verdict_comes_first_and_no_forbidden_word_is_used(report: Report) -> None:
    text = report.html.read_text(encoding="utf-8")
    verdict = "tar is undecided: no attack brought the hazard back, but 1 of 9 attacks has no result"
    assert text.index(verdict) < text.index("<table")
    for path in (report.html, report.markdown, report.json):
        written = path.read_text(encoding="utf-8").lower()
        assert not re.search(r"unremovable|provabl|\bremoved\b|tamper-?proof", written)


def test_every_attack_has_a_picture_with_its_numbers(report: Report) -> None:
    [section] = report.sections
    [gallery] = [block for chapter in section.chapters for block in chapter.shown if isinstance(block, Gallery)]
    assert len(gallery.figures) == 9
    parsed = tags(report.html)
    assert parsed.tags.count("figure") == len(gallery.figures) + 2  # the frontier and the overview
    assert parsed.tags.count("figcaption") == parsed.tags.count("figure")
    text = report.html.read_text(encoding="utf-8")
    assert text.count('<details class="numbers">') == parsed.tags.count("figure")
    assert text.count('<details class="chapter">') == len(section.chapters)


def test_json_and_markdown_say_the_same(report: Report) -> None:
    [campaign] = json.loads(report.json.read_text(encoding="utf-8"))["campaigns"]
    assert campaign["findings"][0]["verdict"] == "undecided"
    assert {pair["attack"] for pair in campaign["summary"]["pairs"]} == set(campaign["plan"]["attacks"]) - {"none"}
    text = report.markdown.read_text(encoding="utf-8")
    assert campaign["findings"][0]["grounds"].split(",")[0] in text.replace("\N{NO-BREAK SPACE}", " ")
    tables = re.findall(r"(?m)^\|.*\|$", text)
    assert len(tables) > 100
    assert "![" not in text


def test_the_page_is_the_same_twice(report: Report, tmp_path: Path) -> None:
    again = build_report([write(tmp_path / "records", *audited(6))], tmp_path / "again.html")
    assert again.html.read_bytes() == report.html.read_bytes()
    assert again.json.read_bytes() == report.json.read_bytes()


def test_several_campaigns_are_sections_of_one_page(tmp_path: Path) -> None:
    campaign, results = audited(1)
    folders = [write(tmp_path / name, replace(campaign, title=f"Audit {name}"), results) for name in "ab"]
    made = build_report(folders, tmp_path / "both.html")
    parsed = tags(made.html)
    assert [section.title for section in made.sections] == ["Audit a", "Audit b"]
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.tags.count("h2") == 4  # each with its appendix
    assert len(json.loads(made.json.read_text())["campaigns"]) == 2


def test_hostile_strings_are_shown_and_nothing_more(tmp_path: Path) -> None:
    results = [
        cell(HOSTILE, HOSTILE, hazard={0: 0.9, 8: 0.5}, ability={0: 0.9, 8: 0.9}, attack_config={HOSTILE: HOSTILE}),
        cell("tar", HOSTILE, status="failed", reason=HOSTILE, environment={HOSTILE: HOSTILE}),
        replace(cell("half \ud800", hazard={0: 0.9, 8: 0.5}), records=[record(HOSTILE, 0, 0.5)]),
    ]
    roles = {HOSTILE: "undefended", "tar": "defended", "half \ud800": "defended"}
    details = {"models": {HOSTILE: {"stages": [HOSTILE]}}, "notes": [HOSTILE], HOSTILE: HOSTILE}
    campaign = plan(results, roles, title=HOSTILE, domain=HOSTILE, suite=HOSTILE, details=details)
    made = build_report([write(tmp_path / "hostile", campaign, results)], tmp_path / "report.html")
    parsed = tags(made.html)
    assert "script" not in parsed.tags
    assert all(link.startswith("#") for link in parsed.links)
    assert "&lt;script&gt;" in made.html.read_text(encoding="utf-8")
    markdown = made.markdown.read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(", markdown)
    rows = [re.sub(r"\\.", "", line) for line in markdown.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows if row.startswith("| &lt;script")} <= set(range(3, 16))


@pytest.mark.parametrize(
    "results",
    [
        [cell(status="failed", reason="out of memory", first_loss=None, last_loss=None)],
        [cell("tar", "none", hazard={0: 0.3})],
        [cell(hazard={0: 0.3, 8: 0.4})],
        [cell(hazard={0: 0.3, 8: 0.4}, status="diverged")],
        [replace(cell(), records=[record("hazard-loss", step, 3.0 - step / 10, n=64) for step in (0, 8)])],
        [replace(cell(), records=[record("refused", step, 0.9, measures="refusal") for step in (0, 8)])],
    ],
    ids=["all failed", "nothing attacked", "no ability", "all diverged", "losses only", "no hazard"],
)
def test_poor_campaigns_still_make_a_page(tmp_path: Path, results: list) -> None:  # type: ignore[type-arg]
    made = build_report(
        [write(tmp_path / "poor", plan(results, {"tar": "defended"}), results)], tmp_path / "report.html"
    )
    tags(made.html)
    [section] = made.sections
    assert section.findings[0].verdict in ("undecided", "not estimable")
    assert "None" not in made.markdown.read_text(encoding="utf-8")


def test_errors_are_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"ends in \.html"):
        build_report([tmp_path], tmp_path / "report.md")
    with pytest.raises(HoldfastError, match="at least one audit"):
        build_report([], tmp_path / "report.html")
    with pytest.raises(HoldfastError, match=r"no campaign\.json"):
        build_report([tmp_path], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_never_loads_torch_and_importing_it_is_light(tmp_path: Path) -> None:
    folder = write(tmp_path / "records", *audited(1))
    code = (
        "import sys; from pathlib import Path; from holdfast.report.page import build_report;"
        "heavy = {'torch', 'matplotlib', 'jinja2', 'scipy', 'numpy'} & set(sys.modules); assert not heavy, heavy;"
        f"build_report([Path({str(folder)!r})], Path({str(tmp_path / 'report.html')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
