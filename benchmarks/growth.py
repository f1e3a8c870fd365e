"""How the time of an outer step of TAR grows with weights, inner steps, adversaries and vocabulary.

    .venv/bin/python -m benchmarks.growth docs/images/growth.svg

Each panel changes one number of a small model of random weights and keeps the others. A point is the median of some outer steps,
in seconds of the processor on one thread, so what else the machine does counts little. The first step warms up. The slope is that
of the last two points on logarithmic axes: 1 where the time grows as the number does.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import llama
from benchmarks.speed_worker import Job, Program
from holdfast.report.studies.drawing import drawn, plain

BASE = Job(
    shape=llama(128, 4, 4, 4, 352, 1024), rows=8, tokens=48, precision="float32", plain=False, compiled=False, low_rank=False,
    low_rank_adversary=False, inner_steps=8, device="cpu", threads=1,
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One number that changes."""

    name: str
    jobs: Sequence[tuple[float | None, Job]]
    """(the number, what is timed); None: the model's number of weights"""


PANELS = (
    Panel("weights", [(None, replace(BASE, shape=llama(h, 4, 4, 4, 11 * h // 4, 1024))) for h in (32, 64, 128, 256)]),
    Panel("inner steps K", [(k, replace(BASE, inner_steps=k)) for k in (4, 8, 16)]),
    Panel("adversaries a step", [(n, replace(BASE, adversaries=n)) for n in (1, 2, 4)]),
    Panel("vocabulary", [(v, replace(BASE, shape={**BASE.shape, "vocab_size": v})) for v in (256, 1024, 4096, 16384)]),
)  # fmt: skip


def points(panel: Panel, repeats: int) -> list[tuple[float, float]]:
    """(the number, seconds of the processor) of each job."""
    found = []
    for number, job in panel.jobs:
        program = Program(job)
        seconds = [program.run()["seconds"] for _ in range(repeats + 1)][1:]
        size = program.size()
        found.append((size["weights"] if number is None else number, statistics.median(seconds)))
        print(f"| {panel.name} | {found[-1][0]:,.0f} | {size['weights']:,.0f} | {found[-1][1]:.3f} |", flush=True)
    return found


def slope(found: Sequence[tuple[float, float]]) -> float:
    (x, y), (right, top) = found[-2:]
    return math.log(top / y) / math.log(right / x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="SVG file to write")
    parser.add_argument("--repeats", type=int, default=3, help="outer steps a point")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| what changes | to | weights | seconds an outer step |\n|---|---|---|---|")
    measured = [(panel.name, points(panel, arguments.repeats)) for panel in PANELS]
    draw(measured, arguments.picture)


def draw(measured: Sequence[tuple[str, Sequence[tuple[float, float]]]], picture: Path) -> None:
    """Draw a panel for each number that changes, into an SVG file."""
    with drawn(picture, "Seconds of an outer step of TAR", 9.0, 2.8) as figure:
        every: Any = figure.subplots(1, len(measured), sharey=True)
        for axes, (name, found) in zip(every, measured, strict=True):
            axes.loglog(*zip(*found, strict=True), color="#0072B2", marker="o")
            axes.set_xlabel(f"{name}\n(slope {slope(found):.2f} at the end)")
            axes.minorticks_off()
            axes.set_xticks([x for x, _ in found], [short(x) for x, _ in found])
            axes.set_yticks([0.2, 0.5, 1.0, 2.0], ["0.2", "0.5", "1", "2"])
            plain(axes, "top", "right")
            axes.grid(True, color="#e5e7eb")
        every[0].set_ylabel("seconds of the processor")


def short(number: float) -> str:
    """A number of two digits, in thousands or millions where it is large."""
    for least, size, letter in ((1e5, 1e6, "M"), (1e3, 1e3, "k")):
        if number >= least:
            return f"{number / size:.2g}{letter}"
    return f"{number:g}"


if __name__ == "__main__":
    main()
