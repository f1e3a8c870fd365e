"""The claim about TAR whose outer loop and adversaries train LoRA's factors alone, beside TAR with all weights trained.

The worlds, the attacks and what was expected were written down before the first run (LOG.md, 2026-11-27).
"""

from __future__ import annotations

from holdfast.recipes.claims import ATTACKS
from holdfast.recipes.paper_tables import TUNING_WORLD
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study

WORLDS = (501, 502, 503, 504, 505)
TRIALS = 8
TUNING_ATTACKS = ("full-adamw-3e-4", "full-adam-1e-3-warmup")

_STAGES = ("random-mapping", "tar")
METHODS = (
    Method(label="random-mapping", stages=("random-mapping",), role="reference", size=15),
    Method(label="tar", stages=_STAGES, size=145),
    Method(
        label="tar-low-rank",
        stages=_STAGES,
        settings={"lora_rank": 16, "outer_learning_rate": 6e-3},
        space={
            "lora_rank": (4, 16, 64),
            "outer_learning_rate": (3e-3, 6e-3, 1.2e-2),
            "tamper_resistance_weight": (2.0, 4.0, 8.0),
        },
        size=145,
    ),
)
"""TAR's preset was found by trials before, so that the low-rank form alone is tuned here."""


def study() -> Study:
    """One training of each on five worlds, and one seed of an attack of every family."""
    part = Part(
        kind="knowledge",
        methods=METHODS,
        suite="families, with a long mixed attack",
        attacks=ATTACKS,
        tuning_attacks=TUNING_ATTACKS,
        selection="hazard_selection",
    )
    return Study(
        title="TAR by low-rank training",
        parts=(part,),
        tuning_world=TUNING_WORLD,
        worlds=WORLDS,
        trials=TRIALS,
    )
