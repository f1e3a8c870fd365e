"""The picture of safeguards along an attack: hazard by number of updates, a line a method."""

from __future__ import annotations

from pathlib import Path

from holdfast.report.plots import name_of
from holdfast.report.studies.drawing import drawn, plain
from holdfast.report.studies.steps import StepTable

# Okabe and Ito's colours, but brown for their yellow, which is pale on white, and violet; with marks that say the same in print.
_STYLES = (
    ("#6b7280", "s"),
    ("#D55E00", "^"),
    ("#E69F00", "v"),
    ("#009E73", "D"),
    ("#0072B2", "o"),
    ("#CC79A7", "P"),
    ("#56B4E9", "X"),
    ("#8C564B", "*"),
    ("#000000", "<"),
    ("#6A3D9A", "p"),
)
_DASHES = ("-", "--", ":")
"""of the first methods, and of those for which no colour is left"""


def style_of(index: int) -> tuple[str, str, str]:
    """The colour, the mark and the dashes of a method by its place in the table."""
    colour, marker = _STYLES[index % len(_STYLES)]
    return colour, marker, _DASHES[index // len(_STYLES) % len(_DASHES)]


def draw_steps(table: StepTable, measured: str, path: Path) -> None:
    """Draw the mean over worlds of each method, with the range of trained models as a bar, into an SVG file.

    Args:
        table: of the study's page.
        measured: what hazard is here, for the axis.
        path: of the picture.

    The first place is the untouched model; the places are equally far apart, as updates grow by factors.
    """
    names = ["0", *(f"{place.step:,}" for place in table.places)]
    with drawn(path, "Hazard by number of updates of the attack", 7.0, 4.0) as figure:
        axes = figure.subplots()
        for index, row in enumerate(table.rows):
            colour, marker, dashes = style_of(index)
            known = [(place, claim) for place, claim in enumerate(row.hazard) if claim is not None]
            # Bars of methods stand beside one another.
            xs = [place + 0.04 * (index - len(table.rows) / 2) for place, _ in known]
            axes.plot(
                xs, [100 * claim.mean for _, claim in known], f"{marker}{dashes}", color=colour, label=name_of(row.label),
                markeredgewidth=0, linewidth=1.2,
            )  # fmt: skip
            axes.vlines(
                xs, [100 * claim.low for _, claim in known], [100 * claim.high for _, claim in known], color=colour,
                linewidth=1, alpha=0.6,
            )  # fmt: skip
        axes.axhline(100 * table.chance, color="#6b7280", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 102)
        axes.set_xlabel("updates of the attack")
        axes.set_ylabel(f"{measured}, %")
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
        plain(axes, "top", "right")
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
