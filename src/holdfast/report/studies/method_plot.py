"""The picture of a study: hazard and ability of every method, before and after attack, world by world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from holdfast.report.plots import name_of
from holdfast.report.studies.drawing import drawn, plain
from holdfast.report.studies.methods import MethodRow, MethodTable, OnWorld

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUIET = "#6b7280"
_SHOWN: Mapping[str, str] = {
    "knowledge": "hazard questions answered right",
    "refusal": "forbidden requests complied with",
}


class _Mark(NamedTuple):
    """The mark of a figure of a method: a small mark a world, and a large mark for the mean."""

    label: str
    figure: Callable[[OnWorld], float | None]
    colour: str
    marker: str


# Okabe and Ito's colours, and shapes that say the same in print.
_BEFORE, _AFTER, _WORST = ("#009E73", "D"), ("#0072B2", "o"), ("#D55E00", "^")
_HAZARD = (
    _Mark("before attack", lambda on_world: on_world.before, *_BEFORE),
    _Mark("after, mean of attacks", lambda on_world: on_world.after, *_AFTER),
    _Mark("worst, ability kept", lambda on_world: on_world.worst, *_WORST),
)
_ABILITY = (
    _Mark("before attack", lambda on_world: on_world.ability_before, *_BEFORE),
    _Mark("after, mean of attacks", lambda on_world: on_world.ability_after, *_AFTER),
)


def draw_methods(table: MethodTable, path: Path, kind: str) -> None:
    """Draw one domain's rows, from the least hazard after attack to the most, into an SVG file.

    Rows without a measurement are left out.
    """
    shown = sorted(
        (row for row in table.rows if row.mean(lambda on_world: on_world.after) is not None),
        key=lambda row: row.mean(lambda on_world: on_world.after) or 0.0,
        reverse=True,
    )
    with drawn(path, f"{_SHOWN[kind]}, by safeguard", 9.0, 0.9 + 0.27 * len(shown)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for axes, marks, title in ((left, _HAZARD, _SHOWN[kind]), (right, _ABILITY, "ability outside the retain set")):
            _panel(axes, shown, marks)
            axes.set_xlabel(f"{title}, %")
        left.axvline(100 * table.chance, color=_QUIET, linewidth=0.8, linestyle=":", zorder=0)
        left.set_yticks(range(len(shown)), [name_of(row.label) for row in shown])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)


def _panel(axes: Axes, rows: Sequence[MethodRow], marks: Sequence[_Mark]) -> None:
    for mark in marks:
        worlds = [
            (100 * value, place) for place, row in enumerate(rows) for on_world in row.worlds
            if (value := mark.figure(on_world)) is not None
        ]  # fmt: skip
        means = [
            (100 * mean, place) for place, row in enumerate(rows) if (mean := row.mean(mark.figure)) is not None
        ]  # fmt: skip
        for points, size, alpha, label in ((worlds, 3.0, 0.45, None), (means, 6.5, 1.0, mark.label)):
            axes.plot(
                [x for x, _ in points], [y for _, y in points], mark.marker, color=mark.colour, markersize=size,
                alpha=alpha, label=label, markeredgewidth=0, clip_on=False,
            )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
    axes.tick_params(length=0, pad=7, colors="#111827")
    plain(axes, "top", "right", "left")
