"""The picture of a search: the hazard that every tried attack recovered, over its cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.report.studies.drawing import drawn, plain

# Okabe and Ito's colours, with shapes that say the same in print.
_KEPT, _LOST, _STOPPED = ("#0072B2", "o"), ("#D55E00", "X"), ("#9ca3af", ".")


def draw_search(table: Mapping[str, Any], path: Path) -> None:
    """Draw a search (what `describe_search` gives) into an SVG file: selection hazard of each trial over its FLOPs.

    Trials that lost more ability than allowed and trials that were stopped are marked apart; the line is the best that
    keeps ability at each cost or below, and the winner's confirmation stands beside it with its interval.
    """
    tried = [trial for trial in table["trials"] if trial["status"] != "failed" and trial["flops"] > 0]
    stopped = [trial for trial in tried if trial["status"] == "pruned"]
    whole = [trial for trial in tried if trial["status"] == "finished"]
    groups = (
        (stopped, "stopped early", _STOPPED),
        ([trial for trial in whole if not trial["feasible"]], "ability lost", _LOST),
        ([trial for trial in whole if trial["feasible"]], "ability kept", _KEPT),
    )
    with drawn(path, "Attacks that a search tried", 7.0, 3.6) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        for trials, label, (colour, marker) in groups:
            if trials:
                axes.plot(
                    [trial["flops"] for trial in trials], [100 * trial["hazard"] for trial in trials], marker,
                    color=colour, label=label, markeredgewidth=0,
                )  # fmt: skip
        frontier: list[tuple[float, float]] = []
        for trial in sorted((t for t in whole if t["feasible"]), key=lambda t: float(t["flops"])):
            if not frontier or 100 * trial["hazard"] > frontier[-1][1]:
                frontier.append((trial["flops"], 100 * trial["hazard"]))
        axes.step([x for x, _ in frontier], [y for _, y in frontier], where="post", color=_KEPT[0], linewidth=1)
        winner = next((trial for trial in tried if trial["key"] == table["winner"]), None)
        if winner is not None and table["confirmation"] is not None:
            confirmed = table["confirmation"]
            low, high = (
                (confirmed["interval"]["low"], confirmed["interval"]["high"]) if confirmed["interval"] else (None, None)
            )
            axes.plot(
                winner["flops"], 100 * confirmed["hazard"], "D", color="#009E73", label="winner, confirmed", zorder=4
            )
            if low is not None and high is not None:
                axes.vlines(winner["flops"], 100 * low, 100 * high, color="#009E73", linewidth=2, zorder=4)
        axes.set_ylim(0, 102)
        axes.set_xlabel("FLOPs of the attack")
        axes.set_ylabel("hazard, %")
        axes.grid(color="#e5e7eb", linewidth=0.7)
        plain(axes, "top", "right")
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
