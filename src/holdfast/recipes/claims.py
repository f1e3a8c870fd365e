"""Claims about methods: on several worlds two trainings of each safeguard, and two seeds of an attack of every family."""

from __future__ import annotations

from holdfast.recipes.paper_tables import TUNING_WORLD
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES

WORLDS = (62, 63, 64)
SAFEGUARD_SEEDS = (0, 1)
ATTACK_SEEDS = (0, 1)

ATTACKS = (*SUITES["families"].attacks, "full-adamw-3e-4-mixed-long")
"""One of each family, and the patient attacker, who did most to TAR before."""

METHODS = {"random-mapping": 15.0, "rmu": 10.0, "tar": 130.0}
"""Label -> seconds that it takes to build."""


def label(method: str, seed: int) -> str:
    """The name of one trained model."""
    return f"{method}-{seed}"


def study() -> Study:
    """Random Mapping, RMU and TAR with the presets' constants; nothing is tuned."""
    stages = {"random-mapping": ("random-mapping",), "rmu": ("rmu",), "tar": ("random-mapping", "tar")}
    methods = tuple(
        Method(
            label=label(method, seed),
            stages=stages[method],
            role="reference" if method == "random-mapping" else "defended",
            size=size,
            seed=seed,
        )
        for method, size in METHODS.items()
        for seed in SAFEGUARD_SEEDS
    )
    part = Part(
        kind="knowledge",
        methods=methods,
        suite="families, with a long mixed attack",
        attacks=ATTACKS,
        tuning_attacks=(),
        selection="hazard_selection",
    )
    return Study(
        title="Claims about methods",
        parts=(part,),
        tuning_world=TUNING_WORLD,
        worlds=WORLDS,
        trials=0,
        seeds=ATTACK_SEEDS,
    )
