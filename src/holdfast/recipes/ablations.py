"""TAR's parts, taken away or changed one at a time, on the testbed. Nothing is tuned: every row differs in one thing.

Every row runs two thirds of the preset's outer steps, so that two cores make the table within the hour.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from holdfast.core.presets import pick
from holdfast.recipes.paper_tables import TUNING_WORLD
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES
from holdfast.safeguards.parts.objective import RetainLoss

WORLDS = (21, 22, 23)


def study() -> Study:
    """The whole of TAR, then one change a row."""
    preset = pick("holdfast.safeguards", "tar")
    without_switch = tuple(entry for entry in preset.adversaries if entry.switch is None)

    def row(label: str, size: float = 115.0, first: tuple[str, ...] = ("random-mapping",), **settings: Any) -> Method:
        return Method(label=label, stages=(*first, "tar"), settings={"outer_steps": 200, **settings}, size=size)

    inner = preset.inner_steps
    methods = (
        Method(label="random-mapping", stages=("random-mapping",), role="reference", size=15),
        row("tar"),
        # The schedule's rate goes with K, so that the last steps of a trajectory weigh alike.
        row(f"K {inner // 4}", 50.0, inner_steps=inner // 4, every=2, schedule_rate=4 / (inner // 4)),
        row(f"K {2 * inner}", 200.0, inner_steps=2 * inner, every=8, schedule_rate=4 / (2 * inner)),
        row("lambda_TR 1", tamper_resistance_weight=1.0),
        row("lambda_TR 16", tamper_resistance_weight=16.0),
        row("negated cross entropy", tamper_resistance="cross-entropy"),
        row("no representations", retain=RetainLoss(representations=None)),
        row("no retain-then-forget", adversaries=without_switch),
        row("no first stage", first=()),
    )
    part = Part(
        kind="knowledge",
        methods=tuple(replace(method, label=method.label.replace(" ", "-")) for method in methods),
        suite="quick",
        attacks=SUITES["quick"].attacks,
        tuning_attacks=(),
        selection="hazard_selection",
    )
    return Study(title="Ablations of TAR", parts=(part,), tuning_world=TUNING_WORLD, worlds=WORLDS, trials=0)
