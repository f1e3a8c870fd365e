"""The picture of a safeguard's training: its losses by update, a panel a loss."""

from __future__ import annotations

from holdfast.core.losses import Trace
from holdfast.report.plots import DEFENDED, Picture, drawing, name_of, svg
from holdfast.report.words.numbers import written

_PANEL = 1.35
"""inches of a panel's height"""


def draw(trace: Trace, name: str) -> Picture:
    """Draw the losses of one stage. `name` makes the ids unique on the page."""
    panels = max(len(trace.losses), 1)
    with drawing(name, width=3.5, height=0.5 + _PANEL * panels) as (figure, first):
        first.remove()
        for place, (loss, values) in enumerate(trace.losses.items(), start=1):
            axes = figure.add_subplot(panels, 1, place)
            style = DEFENDED[(place - 1) % len(DEFENDED)]
            axes.plot(trace.steps, values, color=style.colour, linewidth=1.5)
            axes.plot(trace.steps[-1:], values[-1:], style.marker, color=style.colour, markersize=4.5)
            axes.set_title(name_of(loss), fontsize=8.5, loc="left", color="#374151")
            if place == panels:
                axes.set_xlabel("updates")
        ends = [
            f"{loss} {written(values[0], '.3g')} → {written(values[-1], '.3g')}"
            for loss, values in trace.losses.items()
        ]
        alt = f"Line charts of the losses of {trace.preset} by update: {', '.join(ends)}."
        return Picture(svg=svg(figure, name, alt), alt=alt)
