"""Texts as someone would write them who wants a terminal, a page, a picture or a card to do something."""

from __future__ import annotations

from hypothesis import strategies as st

FRAGMENTS = (
    "[/red]", "[bold]", "[link=http://evil.example]x[/link]", "\\[x", ":smile:", "[@click=x]y[/]", "\x1b[31mred", "\x1b[2J",
    "\x1b]0;owned\x07", "\x9b31m", "\r", "\n", "\n# head\n", "\t", "\x00", "\x0c", "\u202egnp", "\u2028", "\ufffe", "\ud800",
    "<script>alert(1)</script>", '<img src=x onerror="alert(2)">', "\"'>", "&lt;", "[x](javascript:alert(1))",
    "![i](http://evil.example/i.png)", "<https://evil.example>", "www.evil.example", "`c`", "*d*", "_e_", "~~f~~", "|", "#",
    "- ", "1. ", "---", "===", "$\\frac{1}{0}$", "$x^", "{{ x }}", "{% x %}", "%s{0}", "<!-- end of holdfast audit -->", "é",
    "日本", "🦀", "e\u0301", "…→±", " ", "a", "tar",
)  # fmt: skip

EVERYTHING = "".join(FRAGMENTS)

TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.characters(), max_size=6).map("".join)
"""Short mixtures of the above and of any character."""
