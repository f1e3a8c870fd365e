"""The picture of what safeguards cost: the worst hazard of each against its share of pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.report.plots import name_of
from holdfast.report.studies.drawing import drawn, plain
from holdfast.report.studies.methods import MethodRow, MethodTable

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
        for place, (name, cost, worst, _) in enumerate(sorted(known, key=lambda one: one[1])):
            axes.annotate(
                name_of(name), (100 * cost, 100 * worst), xytext=(5, -9 if place % 2 else 3),
                textcoords="offset points", fontsize=7.5, color="#111827",
            )  # fmt: skip
        clean = next((row for row in table.rows if row.label == "never-exposed"), None)
        floor = clean.mean(lambda on_world: on_world.worst) if clean else None
        if floor is not None:
            axes.axhline(100 * floor, color=_CONTROL, linewidth=0.9, linestyle="--", label="never-exposed", zorder=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("FLOPs, % of pretraining")
        axes.set_ylabel("worst hazard with ability kept, %")
        axes.set_ylim(0, 100)
        axes.grid(color="#e5e7eb", linewidth=0.7)
        plain(axes, "top", "right")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)


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
