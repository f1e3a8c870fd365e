from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from holdfast.core.escape import brief, for_html, for_markdown, for_shell, for_svg, for_terminal, for_yaml, short
from tests.hostile_text import TEXTS

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def rendered(markdown: str) -> tuple[list[str], str]:
    """The tags that Markdown becomes, and the text between them."""
    tags: list[str] = []
    text: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

        def handle_data(self, data: str) -> None:
            text.append(data)

    Reader().feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
    return tags, "".join(text)


@given(TEXTS)
def test_no_output_holds_a_character_that_acts(text: str) -> None:
    for escape in (for_terminal, for_html, for_svg, for_markdown, for_yaml, for_shell):
        escaped = escape(text)
        assert not CONTROLS.search(escaped), escape.__name__
        escaped.encode("utf-8")
    assert "\n" not in for_terminal(text) + for_markdown(text) + for_yaml(text) + for_shell(text)


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_a_text_of_letters_is_shown_unchanged(text: str) -> None:
    assert for_terminal(text) == for_svg(text) == for_yaml(text) == text


@given(TEXTS)
def test_html_and_xml_give_the_text_back(text: str) -> None:
    element = ElementTree.fromstring(f'<a b="{for_html(text)}">{for_html(text)}</a>')
    assert for_terminal(element.text or "") == for_terminal(text)
    assert element.attrib["b"].split() == (element.text or "").split()
    assert not list(element)


@given(TEXTS)
@example("[x](javascript:alert(1)) ![i](http://evil.example/i.png) <b> `c` *d* ~~e~~ https://evil.example")
@example("1. a")
@example("- a")
@example("---")
@example("===")
@example("    code")
def test_markdown_shows_the_text_and_makes_nothing_of_it(text: str) -> None:
    """As a paragraph, after a bullet, and in a cell of a table."""
    line = for_markdown(text)
    tags, shown = rendered(f"{line}\n" if line else "x\n")
    assert tags == ["p"]
    if line:
        assert shown.strip() == for_yaml(text)
    assert rendered(f"before\n{line}\n")[0] == ["p"], "it neither ends a paragraph nor makes it a heading"
    assert rendered(f"- {line or 'x'}\n")[0] in (["ul", "li"], ["ul", "li", "p"])
    cells = rendered(f"| a |\n| --- |\n| {line} |\n")[0]
    assert cells == ["table", "thead", "tr", "th", "tbody", "tr", "td"]


def test_github_makes_no_link_of_a_bare_address() -> None:
    escaped = for_markdown("see https://evil.example or WWW.evil.example")
    assert not re.search(r"https://|www\.", escaped, re.IGNORECASE)
    assert rendered(escaped)[1].strip() == "see https://evil.example or WWW.evil.example"


@pytest.mark.parametrize(
    "word",
    [
        "plain",
        "two words",
        "it's",
        "x\x1b]0;owned\x07y",
        "a\nb\tc\\d'e",
        "\udcffname",
        "[red]",
        "日本",
        "$HOME `x` é\r",
    ],
)
def test_a_shell_reads_a_word_as_it_was(word: str) -> None:
    done = subprocess.run(["bash", "-c", f"printf %s {for_shell(word)}"], capture_output=True, check=True)
    assert done.stdout == word.encode("utf-8", "surrogateescape")


def test_what_a_message_quotes_is_cut_in_its_middle() -> None:
    assert brief(f"the file {'a' * 5000} is gone; give another").endswith("is gone; give another")
    assert len(brief(f"the file {'a' * 5000} is gone; give another")) < 400
    assert len(brief("a word " * 5000)) == 700
    assert short("9" * 5000) == "9" * 40 + "…" + "9" * 19
    assert short("999") == "999"
