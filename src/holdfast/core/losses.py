"""The losses of a safeguard's training as a stream on disk: one line of JSON an update, in the order of the updates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, with_config

from holdfast.core.reading import STRICT, parsed

LOSSES = "losses.jsonl"
"""the file's name in the folder of a safeguarded model"""

POINTS = 64
"""updates that a picture of one stage shows, at most"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Line:
    """The losses of one update."""

    stage: int
    """counted from 1, over every safeguard that the model has"""
    preset: str
    step: int
    """counted from 1 in each stage"""
    losses: dict[str, float]
    """by name, as the safeguard gives them"""


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Trace:
    """The losses of one stage."""

    stage: int
    preset: str
    steps: list[int]
    losses: dict[str, list[float]]
    """by name, one value a step"""


_LINE, _TRACES = TypeAdapter(Line), TypeAdapter(list[Trace])


def written(line: Line) -> str:
    """A line as it stands in the file."""
    return json.dumps(asdict(line), ensure_ascii=False, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[Line]:
    """The lines of a stream up to the first that is not whole; none where there is no such file.

    A kill may leave half of the last line, and a file from elsewhere may hold anything.
    """
    lines: list[Line] = []
    for content in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            if not content.endswith(b"\n"):
                break
            lines.append(parsed(_LINE, content))
        except ValueError:
            break
    return lines


def traces(lines: Sequence[Line], points: int | None = None) -> list[Trace]:
    """The stages of a stream, each with about `points` of its updates, the first and the last among them; None: with all.

    An update that lacks one of the stage's losses is left out.
    """
    stages: dict[int, list[Line]] = {}
    for line in lines:
        stages.setdefault(line.stage, []).append(line)
    found = []
    for stage, inside in sorted(stages.items()):
        whole = [line for line in inside if line.losses.keys() == inside[0].losses.keys()]
        count = len(whole) if points is None else min(points, len(whole))
        kept = [whole[round(i * (len(whole) - 1) / max(count - 1, 1))] for i in range(count)]
        found.append(
            Trace(
                stage=stage,
                preset=inside[0].preset,
                steps=[line.step for line in kept],
                losses={name: [line.losses[name] for line in kept] for name in inside[0].losses},
            )
        )
    return found


def read_traces(value: Any) -> list[Trace]:
    """The stages that a plan holds as plain values; none where it holds none, or anything else."""
    try:
        found: list[Trace] = parsed(_TRACES, json.dumps(value).encode())
    except (ValueError, TypeError):
        return []
    return [trace for trace in found if trace.steps and all(len(v) == len(trace.steps) for v in trace.losses.values())]
