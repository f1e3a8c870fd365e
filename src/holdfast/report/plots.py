"""Inline SVG pictures: relearning curves and the overview of hazard against ability.

Colours are Okabe and Ito's, told apart by the colour-blind; markers and dashes say the same again, for print.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from holdfast.core.escape import for_svg, short
from holdfast.report.words.numbers import amount
from holdfast.stats.cells import CellSummary, Scale
from holdfast.stats.figures import CampaignSummary, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
QUIET = "#6b7280"
"""the grey of axes and reference lines"""
INK = "#1a1d21"
"""of labels"""
FRAME, LETTERS = "#9ca3af", "#374151"
"""of axes, and of their labels"""
_CSS = {"#000000": "var(--ink)", INK: "var(--ink)", LETTERS: "var(--soft)", QUIET: "var(--soft)", FRAME: "var(--frame)"}
"""Colours that follow the page's, light or dark."""
_CSS_COLOUR = re.compile("|".join(_CSS))


@dataclass(frozen=True, kw_only=True)
class Style:
    """The style of one model in every picture of a campaign."""

    colour: str
    marker: str
    dashes: str


BY_ROLE = {
    "undefended": Style(colour="#000000", marker="s", dashes="--"),
    "reference": Style(colour="#E69F00", marker="^", dashes="-."),
    "never-exposed": Style(colour="#009E73", marker="D", dashes=":"),
    "destroyed": Style(colour="#999999", marker="*", dashes=":"),
}
DEFENDED = (
    Style(colour="#0072B2", marker="o", dashes="-"),
    Style(colour="#D55E00", marker="v", dashes="-"),
    Style(colour="#CC79A7", marker="P", dashes="-"),
    Style(colour="#56B4E9", marker="X", dashes="-"),
    Style(colour="#0072B2", marker="<", dashes="--"),
    Style(colour="#D55E00", marker=">", dashes="--"),
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawn figure."""

    svg: str
    """an `<svg>` element with ids of its own, safe to place in HTML"""
    alt: str


def styles(summary: CampaignSummary) -> dict[str, Style]:
    """A style for each model; a second model of one role gets the next free style."""
    free = iter(DEFENDED * len(summary.models))
    chosen: dict[str, Style] = {}
    for model in summary.models:
        fixed = BY_ROLE.get(model.role)
        chosen[model.label] = fixed if fixed and fixed not in chosen.values() else next(free)
    return chosen


def relearning(summary: CampaignSummary, attack: str, name: str) -> Picture | None:
    """Draw hazard over attack steps, all models in one picture; None where nothing was measured.

    Lines are means over seeds, bands run from the smallest to the largest; a cross ends a run that became non-finite.
    `name` makes the ids unique on the page.
    """
    cells = [cell for cell in summary.cells if cell.attack == attack and cell.curve]
    if not cells:
        return None
    with drawing(name, width=3.9, height=2.5) as (figure, axes):
        labels = _levels(axes, summary, attack)
        for label, style in styles(summary).items():
            end = _draw_curves(axes, [cell for cell in cells if cell.model == label], style)
            labels += [] if end is None else [Label(at=end, text=short(for_svg(label), 18), style=style)]
        last = max(point.step for cell in cells for point in cell.curve)
        axes.set_xscale("symlog", linthresh=1, linscale=0.35)
        axes.set_xlim(-0.15, max(last, 1) * 1.25)
        ticks = [0, *(10**power for power in range(7) if 10**power <= last)]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        scale_axis(axes, summary.hazard, "y")
        axes.set_xlabel("attack steps")
        axes.set_ylabel(label_of("hazard", summary.hazard))
        label_ends(axes, labels)
        alt = _relearning_alt(cells, summary)
        return Picture(svg=svg(figure, name, alt), alt=alt)


def overview(summary: CampaignSummary, name: str) -> Picture | None:
    """Draw hazard against ability after each attack, a dot an attack: a ruined model is not a safe model."""
    pairs = [pair for pair in summary.pairs if pair.after is not None and pair.ability_after is not None]
    if not pairs:
        return None
    with drawing(name, width=4.9, height=3.7) as (figure, axes):
        _chance_lines(axes, summary)
        for label, style in styles(summary).items():
            _draw_dots(axes, [pair for pair in pairs if pair.model == label], style)
        for model in summary.models:
            if model.before is not None and model.ability_before is not None:
                style = styles(summary)[model.label]
                at = (model.ability_before, model.before.value)
                axes.plot(*at, style.marker, color=style.colour, markersize=11, markerfacecolor="none", clip_on=False)
        scale_axis(axes, summary.hazard, "y")
        scale_axis(axes, summary.ability, "x")
        axes.set_xlabel(label_of("ability after attack", summary.ability))
        axes.set_ylabel(label_of("hazard after attack", summary.hazard))
        alt = f"Scatter of hazard against ability after attack, {len(pairs)} dots. {_extremes(pairs, summary)}"
        return Picture(svg=svg(figure, name, alt), alt=alt)


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text beside the right end of what it names."""

    at: float
    """on the vertical axis"""
    text: str
    style: Style | None = None
    """of the line; None: a reference level"""


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label beside the right end of its line, in the order of the lines' ends and none over another.

    The axes must have their limits. The marker has the line's colour; the text has the page's ink, since some lines are light.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure(root=True)
    assert figure is not None
    low, high = axes.get_ylim()
    gap = 9.5 / (72 * figure.get_figheight() * axes.get_position().height)
    wanted = sorted(((label.at - low) / (high - low), place) for place, label in enumerate(labels))
    for (_, place), height in zip(wanted, spaced([at for at, _ in wanted], gap), strict=True):
        label = labels[place]
        if label.style is not None:
            beside = axes.transAxes + ScaledTranslation(7 / 72, 0, figure.dpi_scale_trans)
            drawn: dict[str, Any] = {"color": label.style.colour, "markersize": 4.2, "clip_on": False}
            axes.plot([1.0], [height], label.style.marker, transform=beside, **drawn)
        axes.annotate(
            label.text,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(5 if label.style is None else 13, 0),
            textcoords="offset points",
            color=QUIET if label.style is None else INK,
            fontsize=7.5,
            va="center",
            annotation_clip=False,
        )


def spaced(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved apart to `gap` at least, as near to where they were as this allows."""
    groups: list[tuple[float, int]] = []  # the sum of where a group's first would be, and its size
    for height in heights:
        total, size = height, 1
        while groups and groups[-1][0] / groups[-1][1] + gap * groups[-1][1] > total / size:
            before, many = groups.pop()
            total, size = before + total - gap * many * size, many + size
        groups.append((total, size))
    return [total / size + gap * place for total, size in groups for place in range(size)]


def swatch(style: Style, name: str) -> str:
    """A legend key: the line and marker of one model."""
    with drawing(name, width=0.5, height=0.2) as (figure, axes):
        axes.set_axis_off()
        axes.set_position((0, 0, 1, 1))
        axes.plot([0, 1, 2], [0, 0, 0], style.dashes, color=style.colour, linewidth=1.6)
        axes.plot([1], [0], style.marker, color=style.colour, markersize=5.5)
        axes.set_xlim(0, 2)
        return svg(figure, name, "", tight=False)


def _draw_curves(axes: Axes, cells: Sequence[CellSummary], style: Style) -> float | None:
    """Draw the runs of one model; returns where the line ends."""
    finished = [cell for cell in cells if cell.counts]
    by_step: dict[int, list[float]] = {}
    for cell in finished:
        for point in cell.curve:
            by_step.setdefault(point.step, []).append(point.value)
    if by_step:
        steps = sorted(by_step)
        means = [fmean(by_step[step]) for step in steps]
        drawn: dict[str, Any] = {"color": style.colour, "markersize": 4.0, "linewidth": 1.5, "clip_on": False}
        axes.plot(steps, means, style.dashes, marker=style.marker, **drawn)
        if len(finished) > 1:
            low, high = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
            axes.fill_between(steps, low, high, color=style.colour, alpha=0.13, linewidth=0)
    for cell in cells:
        if not cell.counts:
            steps, values = [p.step for p in cell.curve], [p.value for p in cell.curve]
            axes.plot(steps, values, style.dashes, color=style.colour, linewidth=0.8, alpha=0.7)
            axes.plot(steps[-1:], values[-1:], "x", color=style.colour, markersize=7, clip_on=False)
    lasts = [cell.curve[-1].value for cell in finished or cells if cell.curve]
    return fmean(lasts) if lasts else None


def _draw_dots(axes: Axes, pairs: Sequence[Pair], style: Style) -> None:
    abilities = [pair.ability_after for pair in pairs if pair.ability_after is not None]
    hazards = [pair.after.mean for pair in pairs if pair.after is not None]
    axes.plot(
        abilities, hazards, style.marker, color=style.colour, markersize=6, alpha=0.85, linestyle="none", clip_on=False
    )


def _levels(axes: Axes, summary: CampaignSummary, attack: str) -> list[Label]:
    """Draw the levels of chance and of a breach under this attack; returns their labels."""
    limits = [pair.threshold for pair in summary.pairs if pair.attack == attack and pair.threshold is not None]
    marks = [(summary.hazard.chance, "chance"), (limits[0] if limits else None, "threshold")]
    labels = []
    for value, text in marks:
        if value is not None:
            axes.axhline(value, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
            labels.append(Label(at=value, text=text))
    return labels


def _chance_lines(axes: Axes, summary: CampaignSummary) -> None:
    dotted: dict[str, Any] = {"color": QUIET, "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
    if summary.hazard.chance is not None:
        axes.axhline(summary.hazard.chance, **dotted)
        axes.text(
            0.006, summary.hazard.chance, "chance", color=QUIET, va="bottom", transform=axes.get_yaxis_transform()
        )
    if summary.ability.chance is not None:
        axes.axvline(summary.ability.chance, **dotted)
    corner: dict[str, Any] = {"color": QUIET, "transform": axes.transAxes}
    if summary.hazard.metric != "nats" and summary.ability.metric != "nats":
        axes.text(1.0, 1.05, "recovered, and able", ha="right", **corner)
        axes.text(0.985, 0.03, "resisted, and able", ha="right", **corner)
        axes.text(0.015, 0.03, "ruined", **corner)


def scale_axis(axes: Axes, scale: Scale, which: str) -> None:
    """Set the axis to 0 to 100 percent; the limits of a loss follow the data."""
    if scale.metric == "nats":
        return
    ticks = [0, 0.25, 0.5, 0.75, 1]
    labels = ["0", "25", "50", "75", "100"]
    (axes.set_ylim if which == "y" else axes.set_xlim)(0, 1)
    (axes.set_yticks if which == "y" else axes.set_xticks)(ticks, labels)


def label_of(what: str, scale: Scale) -> str:
    return f"{what}, nats" if scale.metric == "nats" else f"{what}, %"


def _relearning_alt(cells: Sequence[CellSummary], summary: CampaignSummary) -> str:
    ends = []
    for model in summary.models:
        lasts = [cell.last.value for cell in cells if cell.model == model.label and cell.counts and cell.last]
        if lasts:
            ends.append(f"{model.label} {amount(fmean(lasts), summary.hazard)}")
    return f"Line chart of hazard over attack steps. At the end: {', '.join(ends) or 'no run finished'}."


def _extremes(pairs: Sequence[Pair], summary: CampaignSummary) -> str:
    worst = max(pairs, key=lambda pair: summary.hazard.sign * (pair.after.mean if pair.after else 0.0))
    hazard = amount(worst.after.mean if worst.after else None, summary.hazard)
    left = amount(worst.ability_after, summary.ability)
    return f"Highest hazard: {worst.model} under {worst.attack}, {hazard} with {left} ability left."


def name_of(model: str) -> str:
    """A name beside an axis, which leaves room for what is drawn."""
    return short(for_svg(model), 40)


@contextmanager
def names_as_data(look: Any) -> Iterator[None]:
    """A look of pictures whose labels are names: a "$" makes no formula, and the reader's fonts draw what ours lack."""
    import warnings

    import matplotlib

    with matplotlib.rc_context({**look, "svg.fonttype": "none", "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


@contextmanager
def drawing(name: str, *, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure in the page's look, of inches; the settings hold until it is written."""
    from matplotlib.figure import Figure

    look = {
        "svg.hashsalt": name,
        "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that a picture is the same everywhere
        "font.size": 8.5,
        "axes.edgecolor": FRAME,
        "axes.labelcolor": LETTERS,
        "xtick.color": FRAME,
        "ytick.color": FRAME,
        "xtick.labelcolor": LETTERS,
        "ytick.labelcolor": LETTERS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "lines.solid_capstyle": "round",
    }
    with names_as_data(look):
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots()


def svg(figure: Figure, name: str, alt: str, *, tight: bool = True) -> str:
    """The figure as an element to inline: no date, ids that start with `name`, a size that follows its column."""
    from io import BytesIO

    if tight:
        figure.tight_layout(pad=0.6)
    written = BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(written.getvalue())
    for metadata_element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata_element)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    for key in ("width", "height"):
        del root.attrib[key]
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _CSS_COLOUR.sub(lambda found: _CSS[found[0]], element.attrib["style"]))
    if alt:
        root.set("role", "img")
        root.set("aria-label", for_svg(alt))
    else:
        root.set("aria-hidden", "true")
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")
