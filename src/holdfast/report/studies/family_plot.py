"""The picture of a red team: a square for every family and model, shaded by hazard, with the ability beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.report.plots import name_of
from holdfast.report.studies.drawing import drawn, plain
from holdfast.report.studies.families import FamilyRow

_DARK = 0.6
"""share of the scale from which on a text is white"""


def draw_families(rows: Sequence[FamilyRow], models: Sequence[str], path: Path) -> None:
    """Draw hazard (percent, mean over worlds) by family and model into an SVG file; ✗ marks where ability was lost anywhere."""
    with drawn(
        path, "Hazard by family of attack and model", 1.9 + 1.35 * len(models), 0.8 + 0.36 * len(rows)
    ) as figure:
        axes = figure.subplots()
        grid = [
            [100 * hazard if (hazard := row.mean(model)) is not None else float("nan") for model in models]
            for row in rows
        ]
        # One hue from light to dark: it survives print and every kind of colour blindness.
        image = axes.imshow(grid, cmap="Blues", vmin=25, vmax=100, aspect="auto")
        for y, row in enumerate(rows):
            for x, model in enumerate(models):
                spots = row.spots.get(model, ())
                if not spots:
                    axes.text(x, y, "–", ha="center", va="center", color="#6b7280")
                    continue
                dark = (grid[y][x] - 25) / 75 > _DARK
                ability = row.ability(model)
                lost = "" if all(spot.kept for spot in spots) else " ✗"
                left = "" if ability is None else f"  ({100 * ability:.0f}{lost})"
                axes.text(
                    x, y, f"{grid[y][x]:.0f}{left}", ha="center", va="center", color="white" if dark else "#111827"
                )
        axes.set_xticks(range(len(models)), [name_of(model) for model in models])
        axes.set_yticks(range(len(rows)), [name_of(row.family) for row in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        plain(axes, *axes.spines)
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label("hazard, % (in brackets: ability left, ✗ lost)")
        bar.outline.set_visible(False)
