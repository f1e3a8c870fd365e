"""What verbs print."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from holdfast.cli.say import print_verdicts


@pytest.mark.parametrize("verdict", ["not recovered", "breached before any attack"])
def test_a_name_stands_in_one_line_in_80_columns(verdict: str) -> None:
    names = ("undefended", "random-mapping", "never-exposed", "rmu-tar")
    figures = {"before": "100 %", "mean": "100 %", "worst": "100 %", "ability": "100 → 100 %", "resisted": "12 of 24"}
    rows: Any = [SimpleNamespace(model=name, verdict=verdict, worst_attack="-", **figures) for name in names]
    printed = io.StringIO()
    print_verdicts(Console(file=printed, width=80), "holdfast demo", rows)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for name in names:
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert line.split()[-3:] == ["12", "of", "24"]
        assert figures["ability"] in line
