"""The paper's two tables, remade on the testbed: safeguards of both kinds, tuned alike, under the same attacks.

The short table is one that two cores make in a little more than an hour; the full one has every method, more worlds and more
trials.
"""

from __future__ import annotations

from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES

TUNING_WORLD = 100
WORLDS = (11, 12, 13)
MORE_WORLDS = (11, 12, 13, 14, 15)

_RATES = (5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3)
_STEPS = (100, 200, 400)
_SHALLOW = {"learning_rate": _RATES, "outer_steps": _STEPS}
_OUTER = {"outer_learning_rate": (5e-4, 1e-3, 2e-3, 3e-3), "tamper_resistance_weight": (1.0, 2.0, 4.0, 8.0)}
_REFUSAL_OUTER = {"outer_learning_rate": (1e-3, 2e-3, 3e-3), "tamper_resistance_weight": (1.0, 2.0, 4.0, 8.0)}
_THIRD = {"outer_steps": 100}
"""Trials of the methods that cost most run a part of their outer steps."""

_RETEACHING = {
    "shrink": (0.6, 0.7, 0.8, 0.9),
    "forget_weight": (0.0, 0.3, 1.0),
    "learning_rate": (2e-3, 3e-3, 4e-3),
}
_BLANK = {"forget_weight": (0.0, 0.1, 0.3, 1.0), "learning_rate": (2e-3, 3e-3, 4e-3, 6e-3)}

_COLLAPSE = {
    "learning_rate": (0.01, 0.02, 0.03),
    "outer_steps": (30, 60, 120),
    "input_directions": (2, 8, 24),
    "gradient_directions": (2, 12, 36),
}

PAPER_KNOWLEDGE = (
    Method(
        label="random-mapping",
        stages=("random-mapping",),
        space={**_SHALLOW, "forget_weight": (4.0, 10.0, 20.0)},
        role="reference",
        size=15,
    ),
    Method(
        label="max-entropy", stages=("max-entropy",), space={**_SHALLOW, "forget_weight": (3.0, 10.0, 30.0)}, size=17
    ),
    Method(
        label="min-posterior", stages=("min-posterior",), space={**_SHALLOW, "forget_weight": (1.0, 3.0, 10.0)}, size=17
    ),
    Method(label="llmu", stages=("llmu",), space={**_SHALLOW, "forget_weight": (0.1, 0.3, 1.0)}, size=17),
    Method(
        label="rmu",
        stages=("rmu",),
        space={**_SHALLOW, "forget_weight": (0.002, 0.01, 0.02, 0.1), "steering": (4.0, 8.0, 16.0)},
        size=10,
    ),
    Method(label="mlac-ar", stages=("mlac-ar",), space=_OUTER, shorter=_THIRD, size=130),
    Method(label="sophon-ar", stages=("sophon-ar",), space=_OUTER, shorter=_THIRD, size=130),
    Method(label="tar", stages=("random-mapping", "tar"), space=_OUTER, shorter=_THIRD, size=160),
)
"""The paper's rows."""

BEYOND_KNOWLEDGE = (
    Method(
        label="grad-diff", stages=("grad-diff",), space={**_SHALLOW, "forget_weight": (0.03, 0.1, 0.3, 1.0)}, size=17
    ),
    Method(label="npo", stages=("npo",), space={**_SHALLOW, "beta": (0.03, 0.1, 0.3)}, size=15),
    Method(
        label="npo-sam",
        stages=("npo-sam",),
        space={**_SHALLOW, "beta": (0.03, 0.1, 0.3), "sam_radius": (0.03, 0.1, 0.3)},
        size=25,
    ),
    Method(
        label="simnpo",
        stages=("simnpo",),
        space={**_SHALLOW, "beta": (0.03, 0.1, 0.3), "forget_weight": (0.1, 0.3, 1.0)},
        size=12,
    ),
    Method(
        label="circuit-breakers",
        stages=("circuit-breakers",),
        space={**_SHALLOW, "forget_weight": (3.0, 10.0, 30.0)},
        size=20,
    ),
    Method(
        label="circuit-breakers-lat",
        stages=("circuit-breakers-lat",),
        space={**_SHALLOW, "forget_weight": (3.0, 10.0, 30.0)},
        size=45,
    ),
    Method(
        label="rep-noise",
        stages=("rep-noise",),
        space={
            **_SHALLOW,
            "outer_steps": (100, 200),
            "noise_weight": (0.1, 1.0, 10.0),
            "ascent_weight": (0.1, 0.3, 1.0),
        },
        size=25,
    ),
    Method(
        label="rmu-lat", stages=("rmu-lat",), space={**_SHALLOW, "forget_weight": (0.002, 0.01, 0.02, 0.1)}, size=35
    ),
    Method(
        label="rep-select",
        stages=("rep-select",),
        space={"learning_rate": (0.015, 0.03, 0.06), "outer_steps": (12, 24), "components": (4, 8, 16, 32)},
        size=8,
    ),
    Method(
        label="seam",
        stages=("seam",),
        space={**_SHALLOW, "forget_weight": (1.0, 3.0, 10.0), "coupling_weight": (0.0, 0.03, 0.1)},
        size=30,
    ),
    Method(label="cir", stages=("cir",), space=_COLLAPSE, size=10),
    Method(label="mcu", stages=("mcu",), space={**_COLLAPSE, "output_directions": (4, 8, 16)}, size=10),
    Method(
        label="undo",
        stages=("random-mapping", "undo"),
        space={"shrink": (0.4, 0.5, 0.6, 0.7), "noise": (0.1, 0.3, 1.0)},
        size=50,
    ),
    Method(
        label="undo-generated",
        stages=("random-mapping", "undo-generated"),
        space={"shrink": (0.5, 0.6, 0.7, 0.8), "forget_weight": (0.0, 0.3, 1.0)},
        shorter={"outer_steps": 250},
        size=60,
    ),
    Method(label="reteach", stages=("reteach",), space=_RETEACHING, size=25),
    Method(label="reteach-text", stages=("reteach-text",), space=_RETEACHING, size=25),
    Method(label="reteach-mlp", stages=("reteach-mlp",), space=_RETEACHING, size=25),
    Method(label="reteach-blank", stages=("reteach-blank",), space=_BLANK, size=25),
    Method(label="rmu-tar", stages=("rmu", "tar"), space=_OUTER, shorter=_THIRD, size=160),
    Method(label="undo-tar", stages=("random-mapping", "undo", "tar"), space=_OUTER, shorter=_THIRD, size=200),
    Method(label="tar-distilled", stages=("random-mapping", "tar-distilled"), space=_OUTER, shorter=_THIRD, size=180),
    Method(
        label="tar-distilled-generated",
        stages=("random-mapping", "tar-distilled-generated"),
        space=_OUTER,
        shorter=_THIRD,
        size=190,
    ),
    Method(label="tar-persistent", stages=("random-mapping", "tar-persistent"), space=_OUTER, shorter=_THIRD, size=160),
    Method(
        label="tar-distilled-persistent",
        stages=("random-mapping", "tar-distilled-persistent"),
        space=_OUTER,
        shorter=_THIRD,
        size=180,
    ),
)
"""Methods that the paper does not compare with."""

_TRAINED = "refusal-trained"

PAPER_REFUSAL = (
    Method(label=_TRAINED, stages=("refusal-sft", "refusal-dpo"), role="reference", size=30),
    Method(
        label="circuit-breakers",
        stages=("circuit-breakers-refusal",),
        space={**_SHALLOW, "forget_weight": (3.0, 10.0, 30.0)},
        start=_TRAINED,
        size=30,
    ),
    Method(
        label="rep-noise",
        stages=("rep-noise-refusal",),
        space={
            **_SHALLOW,
            "outer_steps": (100, 200),
            "noise_weight": (0.1, 1.0, 10.0),
            "ascent_weight": (0.1, 0.3, 1.0),
        },
        start=_TRAINED,
        size=35,
    ),
    Method(
        label="tar", stages=("tar-refusal",), space=_REFUSAL_OUTER, shorter={"outer_steps": 50}, start=_TRAINED, size=85
    ),
)
BEYOND_REFUSAL = (
    Method(
        label="booster",
        stages=("booster",),
        space={**_SHALLOW, "forget_weight": (1.0, 5.0, 20.0), "harmful_step": (0.1, 0.3, 1.0)},
        start=_TRAINED,
        size=45,
    ),
    Method(
        label="circuit-breakers-lat",
        stages=("circuit-breakers-refusal-lat",),
        space={**_SHALLOW, "forget_weight": (3.0, 10.0, 30.0)},
        start=_TRAINED,
        size=55,
    ),
    Method(
        label="seam",
        stages=("seam-refusal",),
        space={**_SHALLOW, "forget_weight": (1.0, 3.0, 10.0), "coupling_weight": (0.0, 0.03, 0.1)},
        start=_TRAINED,
        size=40,
    ),
    Method(
        label="r2d2",
        stages=("r2d2",),
        space={"learning_rate": (2e-4, 5e-4, 1e-3), "outer_steps": (50, 100, 200), "forget_weight": (0.2, 0.5, 1.0)},
        start=_TRAINED,
        size=60,
    ),
)


def _parts(knowledge: tuple[Method, ...], refusal: tuple[Method, ...]) -> tuple[Part, ...]:
    return (
        Part(
            kind="knowledge",
            methods=knowledge,
            suite="quick",
            attacks=SUITES["quick"].attacks,
            tuning_attacks=("full-adamw-3e-4", "full-adam-1e-3-warmup"),
            selection="hazard_selection",
        ),
        Part(
            kind="refusal",
            methods=refusal,
            suite="paper-refusal-tiny",
            attacks=SUITES["paper-refusal-tiny"].attacks,
            tuning_attacks=("full-adamw-3e-4", "full-adam-1e-3-warmup"),
            selection="compliance_selection",
        ),
    )


def short() -> Study:
    """The paper's rows and the strongest beyond them, on three worlds."""
    taken = (
        "grad-diff", "npo-sam", "circuit-breakers", "rep-select", "seam", "cir", "mcu", "undo-generated", "reteach", "booster",
        "r2d2",
    )  # fmt: skip
    chosen = [method for method in BEYOND_KNOWLEDGE if method.label in taken]
    refusing = [method for method in BEYOND_REFUSAL if method.label in taken]
    return Study(
        title="The paper's tables",
        parts=_parts((*PAPER_KNOWLEDGE, *chosen), (*PAPER_REFUSAL, *refusing)),
        tuning_world=TUNING_WORLD,
        worlds=WORLDS,
        trials=6,
    )


def full() -> Study:
    """Every method, on five worlds, with twice the trials."""
    return Study(
        title="The paper's tables, in full",
        parts=_parts((*PAPER_KNOWLEDGE, *BEYOND_KNOWLEDGE), (*PAPER_REFUSAL, *BEYOND_REFUSAL)),
        tuning_world=TUNING_WORLD,
        worlds=MORE_WORLDS,
        trials=12,
    )


def not_run(study: Study) -> dict[str, list[str]]:
    """Kind of domain -> labels of the rows that a study leaves out of the full table."""
    rows = {(part.kind, method.label) for part in study.parts for method in part.methods}
    return {
        part.kind: [method.label for method in part.methods if (part.kind, method.label) not in rows]
        for part in full().parts
    }
