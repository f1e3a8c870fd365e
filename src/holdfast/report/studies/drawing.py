"""A picture in an SVG file, in the look that all pictures of studies share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.core.files import atomic_file
from holdfast.report.plots import names_as_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def drawn(path: Path, title: str, width: float, height: float) -> Iterator[Figure]:
    """Open an empty figure, sized in inches, and write it to `path` at the end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with names_as_data({"font.size": 9, "svg.hashsalt": "holdfast", "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Title": title})


def plain(axes: Axes, *sides: str) -> None:
    """Put grey grid lines behind the marks, and remove the frame on some sides."""
    axes.set_axisbelow(True)
    for side in sides:
        axes.spines[side].set_visible(False)
