"""Situations that were tried against holdfast, counted by kind.

`pytest -m situation` runs them all, the slow ones too, and ends with the table that stands in docs/reliability.md.

A situation is a test with a marker:

    @pytest.mark.situation("hostile input", "a domain")
    @pytest.mark.parametrize("what", DOMAINS)
    def test_a_broken_domain(what: str, ...) -> None: ...

The first word is one of `GROUPS`, the second a kind in words; a new kind needs no entry anywhere. Every parametrised case
counts as one. A test that tries many in a loop says how many with `record_property("situations", 42)`, a fixture of pytest. A
situation counts as answered where its test passes, so the test itself asserts the one sentence, the exit status and that
nothing was lost: `sentence_of` in tests/test_bad_input.py does so for a command.
"""

from __future__ import annotations

from collections import Counter

import pytest

GROUPS = ("hostile input", "damaged file", "interruption")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Carry the marker to the process that counts."""
    if marker := item.get_closest_marker("situation"):
        group, kind = marker.args
        assert group in GROUPS, f"{item.nodeid}: the group {group!r} is none of {GROUPS}"
        item.user_properties.append(("situation", f"{group}: {kind}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many situations of each kind were tried, and how many answered."""
    if "situation" not in config.getoption("markexpr"):
        return
    tried, answered = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(map(tuple, getattr(report, "user_properties", ())))  # what cannot be collected has none
            if "situation" not in properties or (outcome == "passed" and report.when != "call"):
                continue
            for name in (properties["situation"], properties["situation"].partition(":")[0]):
                tried[name] += properties.get("situations", 1)
                answered[name] += properties.get("situations", 1) * (outcome == "passed")
    terminalreporter.section("situations")
    terminalreporter.line("| group | kind | tried | answered |")
    terminalreporter.line("|---|---|---|---|")
    for name in sorted(tried, key=lambda name: (GROUPS.index(name.partition(":")[0]), name)):
        group, _, kind = name.partition(": ")
        terminalreporter.line(f"| {group} | {kind or '**all**'} | {tried[name]} | {answered[name]} |")
