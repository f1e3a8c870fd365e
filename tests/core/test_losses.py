"""The stream of losses on disk: what a kill leaves of it, and what a picture takes from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.core.losses import Line, read_lines, read_traces, traces


def lines(stage: int, updates: int) -> list[Line]:
    return [Line(stage=stage, preset="p", step=step, losses={"loss": 1 / step}) for step in range(1, updates + 1)]


def text(line: Line) -> str:
    return json.dumps(vars(line)) + "\n"


@pytest.mark.parametrize(
    "rest", ["", '{"stage": 1', '{"stage": 1}\n', "\x00\n", '{"stage": 1, "preset": "p", "step": 3, "losses": {}}']
)
def test_what_stands_before_a_line_that_is_not_whole_is_read(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text("".join(map(text, lines(1, 2))) + rest)
    assert read_lines(path) == lines(1, 2)
    assert read_lines(tmp_path / "none") == []


def test_a_trace_has_the_first_and_the_last_update_of_each_stage() -> None:
    first, second = traces([*lines(1, 1000), *lines(2, 3)], 64)
    assert (first.stage, len(first.steps), first.steps[0], first.steps[-1]) == (1, 64, 1, 1000)
    assert first.losses["loss"] == [1 / step for step in first.steps]
    assert second.steps == [1, 2, 3]
    assert [len(trace.steps) for trace in traces(lines(1, 1000))] == [1000]


@pytest.mark.parametrize(
    "value", [None, "text", [{}], [{"stage": 1, "preset": "p", "steps": [1], "losses": {"loss": [1.0, 2.0]}}]]
)
def test_a_plan_from_elsewhere_may_hold_anything(value: object) -> None:
    assert read_traces(value) == []


def test_a_plan_holds_traces_as_plain_values() -> None:
    [trace] = traces(lines(1, 5), 3)
    assert read_traces(json.loads(json.dumps([vars(trace)]))) == [trace]
