"""The picture of what safeguards cost: the worst hazard of each against its share of pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.report.plots import name_of
from holdfast.report.studies.drawing import drawn, plain
from holdfast.report.studies.methods import MethodRow, MethodTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROL, _KEEPS, _LOSES = "#6b7280", "#0072B2", "#D55E00"
_KEPT = 0.95
"""ability outside the retain set from which a safeguard counts as one that keeps ability"""


def has_costs(table: MethodTable) -> bool:
    """Whether the worst hazard and the cost of one safeguard at least are known."""
    return bool(_known(table.rows))


def draw_costs(table: MethodTable, path: Path) -> None:
    """Draw the mean over worlds of every safeguard whose cost is known into an SVG file.

    The never-exposed model is a line.
    """
    from matplotlib.ticker import LogLocator

    known = _known(table.rows)
    with drawn(path, "worst hazard against cost, by safeguard", 7.5, 4.6) as figure:
        axes = figure.subplots()
        for label, colour, marker, keeps in (
            (f"keeps at least {100 * _KEPT:.0f} % ability outside the retain set", _KEEPS, "o", True),
            ("keeps less", _LOSES, "^", False),
        ):
            points = [(100 * cost, 100 * worst) for _, cost, worst, ability in known if (ability >= _KEPT) is keeps]
            if points:
                axes.plot(
                    *zip(*points, strict=True), marker, color=colour, label=label, markersize=6.5, markeredgewidth=0
                )
        clean = next((row for row in table.rows if row.label == "never-exposed"), None)
        floor = clean.mean(lambda on_world: on_world.worst) if clean else None
        if floor is not None:
            axes.axhline(100 * floor, color=_CONTROL, linewidth=0.9, linestyle="--", label="never-exposed", zorder=0)
        axes.set_xscale("log")
        axes.minorticks_off()
        costs = [100 * cost for _, cost, _, _ in known]
        axes.set_xlim(0.8 * min(costs), 1.5 * max(costs))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("FLOPs, % of pretraining")
        axes.set_ylabel("worst hazard with ability kept, %")
        axes.set_ylim(0, 100)
        _name(axes, [(name_of(name), 100 * cost, 100 * worst) for name, cost, worst, _ in known])
        axes.grid(color="#e5e7eb", linewidth=0.7)
        plain(axes, "top", "right")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _name(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write a name at each point, at the first of four places where it covers neither a point nor another name."""
    size, dot = 7.5, 5.0  # in points of a seventy-second of an inch
    per_point = axes.figure.dpi / 72
    at = [axes.transData.transform((x, y)) / per_point for _, x, y in points]
    taken = [(x - dot / 2, y - dot / 2, x + dot / 2, y + dot / 2) for x, y in at]
    for (name, cost, worst), (x, y) in sorted(zip(points, at, strict=True), key=lambda one: one[1][0]):
        width = 0.58 * size * len(name)
        places = [(side, height) for side in (dot, -dot - width) for height in (1.0, -size - 1.0)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + size) for dx, dy in places]
        free = (place for place, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken))
        chosen = next(free, 0)
        taken.append(boxes[chosen])
        axes.annotate(
            name, (cost, worst), xytext=places[chosen], textcoords="offset points", fontsize=size, color="#111827",
            annotation_clip=False,
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _known(rows: Sequence[MethodRow]) -> list[tuple[str, float, float, float]]:
    """Safeguard, cost, worst hazard, and ability outside the retain set before any attack."""
    figures = (
        (
            row.label,
            row.mean(lambda on_world: on_world.cost),
            row.mean(lambda on_world: on_world.worst),
            row.mean(lambda on_world: on_world.ability_before),
        )
        for row in rows
    )
    return [
        (label, cost, worst, ability)
        for label, cost, worst, ability in figures
        if cost and worst is not None and ability is not None
    ]
