"""The headline picture: the breach frontier of every model, hazard reached with ability kept against what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

from holdfast.core.escape import for_svg, short
from holdfast.report.plots import QUIET, Label, Picture, Style, drawing, label_ends, label_of, scale_axis, styles, svg
from holdfast.report.words.numbers import amount, power_of_ten, spent
from holdfast.stats.audit import AuditFigures
from holdfast.stats.figures import CampaignSummary
from holdfast.stats.frontier import Reached

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(summary: CampaignSummary, figures: AuditFigures, name: str) -> Picture | None:
    """Draw R(B, epsilon) over log cost, with intervals as bands; None where nothing was attacked.

    Attacks without training stand at the left end. `name` makes the ids unique on the page.
    """
    drawn = {model.label: frontier for model in figures.models if (frontier := model.frontier or model.unbounded)}
    costs = [reached.cost for frontier in drawn.values() for reached in frontier if reached.cost > 0]
    if not costs:
        return None
    left, right = min(costs) / 4, max(max(costs), figures.budget) * 1.15
    with drawing(name, width=6.2, height=3.2) as (figure, axes):
        look, labels = styles(summary), list[Label]()
        for label, frontier in drawn.items():
            _line(axes, frontier, look[label], left, right)
            labels.append(Label(at=frontier[-1].hazard, text=short(for_svg(label), 24), style=look[label]))
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        powers = range(ceil(log10(left)), floor(log10(right)) + 1)
        axes.set_xticks([10.0**power for power in powers], [power_of_ten(power) for power in powers])
        axes.minorticks_off()
        scale_axis(axes, summary.hazard, "y")
        quiet: dict[str, Any] = {"color": QUIET, "zorder": 0}
        dotted: dict[str, Any] = {**quiet, "linewidth": 0.8, "linestyle": (0, (1, 2))}
        limits = [pair.threshold for pair in summary.pairs if pair.threshold is not None]
        if limits:
            # Each attack has its own floor, and so a threshold of its own.
            axes.axhspan(min(limits), max(limits), alpha=0.25, linewidth=0, **quiet)
            axes.axhline(sum(limits) / len(limits), **dotted)
            labels.append(Label(at=sum(limits) / len(limits), text="threshold"))
        if summary.hazard.chance is not None:
            axes.axhline(summary.hazard.chance, **dotted)
            labels.append(Label(at=summary.hazard.chance, text="chance"))
        if figures.budget > 0:
            axes.axvline(figures.budget, color=QUIET, linewidth=0.9, zorder=0)
            end: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.get_xaxis_transform()}
            axes.text(figures.budget, 1.02, "end of the budget", color=QUIET, fontsize=7.5, **end)
        label_ends(axes, labels)
        unit = "FLOPs" if figures.unit == "flops" else "updates"
        axes.set_xlabel(f"cost to the attacker, {unit} (left end: no training)")
        axes.set_ylabel(label_of("greatest hazard, ability kept", summary.hazard))
        alt = _alt(drawn, summary, figures)
        return Picture(svg=svg(figure, name, alt), alt=alt)


def _line(axes: Axes, frontier: Sequence[Reached], style: Style, left: float, right: float) -> None:
    xs = [max(reached.cost, left) for reached in frontier] + [right]
    ys = [reached.hazard for reached in frontier] + [frontier[-1].hazard]
    axes.plot(xs, ys, style.dashes, drawstyle="steps-post", color=style.colour, linewidth=1.7, clip_on=False)
    every = max(1, len(xs) // 6)
    axes.plot(
        xs[:-1:every], ys[:-1:every], style.marker, color=style.colour, markersize=4.5, linestyle="none", clip_on=False
    )
    bands = [(max(reached.cost, left), reached.interval) for reached in frontier if reached.interval is not None]
    if bands:
        bands.append((right, bands[-1][1]))
        edges, intervals = zip(*bands, strict=True)
        lows, highs = [one.low for one in intervals], [one.high for one in intervals]
        axes.fill_between(edges, lows, highs, step="post", color=style.colour, alpha=0.14, linewidth=0)


def _alt(drawn: Mapping[str, Sequence[Reached]], summary: CampaignSummary, figures: AuditFigures) -> str:
    ends = [
        f"{label} {amount(frontier[-1].hazard, summary.hazard)} from {spent(frontier[-1].cost, figures.unit)} on"
        for label, frontier in drawn.items()
    ]
    return f"Breach frontier: the greatest hazard reached with ability kept, by cost. At the largest budget: {', '.join(ends)}."
