"""The real testbed: the demo on a released model, and the table of safeguards on it.

The presets in `-small` were fixed on the split of seed 7. The table's splits are others: other countries are forgotten, held out,
attacked and asked. Each split has a training of its own, so that three splits are three training seeds as well.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.report.studies.steps import Along
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES, called
from holdfast.testbed.real.folder import RealKind

TUNING_SPLIT = 7
SPLITS = (8, 9, 10)
SEEDS = (0, 1)
SHORT, LONG = "full-adamw-1e-4-small", "full-adamw-1e-4-1000-small"
ALONG = (
    Along(attack=SHORT, step=10),
    Along(attack=SHORT, step=20),
    Along(attack=SHORT, step=100),
    Along(attack=LONG, step=1000),
)
"""the columns of the table"""
_SHORT_SECONDS, _LONG_SECONDS = 170.0, 850.0
"""what 20 to 100 updates, and 1,000 updates of two rows, take on one core with bfloat16 products and measuring, about"""
_WRITING_SECONDS = 280.0
"""what the answers to requests, written out at every milestone, take besides"""

TUNING_ATTACKS = ("full-lion-1e-5-small", "lora-r16-adamw-1e-3-small")
"""of the trials; another optimizer, and another kind of weights, than the table's"""
_TRIALS = 6

_RATES = (5e-5, 1e-4, 2e-4)
_STEPS = (60, 120, 240)
_REFERENCE = Method(
    label="random-mapping",
    stages=("random-mapping-small",),
    space={"learning_rate": _RATES, "outer_steps": (80, 160, 240), "forget_weight": (30.0, 100.0, 300.0)},
    role="reference",
    size=240,
)
_OUTER = {
    "outer_learning_rate": _RATES,
    "outer_steps": (40, 80),
    "inner_steps": (8, 16),
    "tamper_resistance_weight": (1.0, 4.0, 16.0),
}
_TAR = Method(label="tar", stages=("random-mapping-small", "tar-small"), space=_OUTER, size=900)
METHODS = (
    _REFERENCE,
    Method(
        label="rmu",
        stages=("rmu-small",),
        space={"learning_rate": (5e-4, 1e-3, 2e-3), "outer_steps": _STEPS, "forget_weight": (1.0, 3.0, 10.0)},
        size=240,
    ),
    Method(
        label="circuit-breakers",
        stages=("circuit-breakers-small",),
        space={"learning_rate": _RATES, "outer_steps": _STEPS, "forget_weight": (3.0, 10.0, 30.0)},
        size=240,
    ),
    Method(
        label="grad-diff",
        stages=("grad-diff-small",),
        space={"learning_rate": _RATES, "outer_steps": (30, 60, 120), "forget_weight": (0.1, 0.3, 1.0)},
        size=120,
    ),
    Method(
        label="npo",
        stages=("npo-small",),
        space={"learning_rate": _RATES, "outer_steps": _STEPS, "beta": (0.03, 0.1, 0.3)},
        size=240,
    ),
    Method(
        label="rep-select",
        stages=("rep-select-small",),
        space={"learning_rate": (5e-4, 2e-3, 8e-3), "outer_steps": (6, 12, 24), "components": (16, 64, 256)},
        size=120,
    ),
    Method(
        label="undo-generated",
        stages=("random-mapping-small", "undo-generated-small"),
        space={"learning_rate": (1e-4, 3e-4, 6e-4), "shrink": (0.1, 0.3, 0.5), "outer_steps": (300, 600)},
        size=4500,
    ),
    Method(
        label="reteach",
        stages=("reteach-small",),
        space={"learning_rate": (1e-4, 3e-4, 6e-4), "shrink": (0.2, 0.3, 0.5), "outer_steps": (600, 1200)},
        size=5700,
    ),
    _TAR,
)

_TRAINED = "refusal-trained"
REFUSAL_METHODS = (
    Method(
        label=_TRAINED,
        stages=("refusal-sft-small", "refusal-dpo-small"),
        space={"learning_rate": (1e-5, 2e-5, 5e-5), "outer_steps": (60, 120), "refusal_weight": (0.3, 1.0)},
        role="reference",
        size=960,
    ),
    Method(
        label="circuit-breakers",
        stages=("circuit-breakers-refusal-small",),
        space={"learning_rate": _RATES, "outer_steps": _STEPS, "forget_weight": (3.0, 10.0, 30.0)},
        start=_TRAINED,
        size=540,
    ),
    Method(label="tar", stages=("tar-refusal-small",), space=_OUTER, start=_TRAINED, size=6400),
)

DEMO_SUITE = "demo-real"
_SHORTER = {"outer_steps": 24, "inner_steps": 8}
"""of TAR in the demo, which is to end within half an hour on two cores"""


def demo(seed: int, options: Options) -> Study:
    """Random Mapping as the reference and TAR on top of it, beside the undefended model, on the split of `seed`."""
    attacks = SUITES[DEMO_SUITE].attacks
    part = Part(
        kind="real",
        methods=(_REFERENCE, replace(_TAR, settings=_SHORTER)),
        suite=called(DEMO_SUITE),
        attacks=attacks,
        details={"canonical": attacks[0]},
        cell_seconds=_SHORT_SECONDS,
    )
    return Study(
        title="holdfast demo on a real model", parts=(part,), worlds=(seed,), seeds=tuple(range(5)), options=options
    )


def study() -> Study:
    """Every method of the table on three splits, a training on each, along an attack of 100 updates."""
    return _study("Safeguards on a real model", "real", METHODS, "hazard_selection", (SHORT,))


def long() -> Study:
    """The same, and along 1,000 updates, which take most of the time."""
    return _study("Safeguards on a real model, in the long run", "real", METHODS, "hazard_selection", (SHORT, LONG))


def full() -> Study:
    """The long study after trials of every method on the tuning split. Comments at the presets say what came of it."""
    return replace(long(), trials=_TRIALS)


def refusals() -> Study:
    """Safeguards of refusal in the model's chat template, along the short attack."""
    return _study("Refusals on a real model", "real-refusal", REFUSAL_METHODS, "compliance_selection", (SHORT,))


def refusals_full() -> Study:
    """The same along both attacks, after trials of every method on the tuning split."""
    both = _study("Refusals on a real model", "real-refusal", REFUSAL_METHODS, "compliance_selection", (SHORT, LONG))
    return replace(both, trials=_TRIALS)


def _study(title: str, kind: RealKind, methods: tuple[Method, ...], selection: str, attacks: tuple[str, ...]) -> Study:
    updates = " and ".join(f"{pick('holdfast.attacks', attack).max_steps:,}" for attack in attacks)
    seconds = {SHORT: _SHORT_SECONDS, LONG: _LONG_SECONDS}
    part = Part(
        kind=kind,
        methods=methods,
        suite=f"AdamW at 1e-4 for {updates} updates",
        attacks=attacks,
        tuning_attacks=TUNING_ATTACKS,
        selection=selection,
        milestones=tuple(column.step for column in ALONG if column.attack in attacks),
        probes=False,
        cell_seconds=fmean(seconds[attack] for attack in attacks)
        + (_WRITING_SECONDS if kind == "real-refusal" else 0.0),
    )
    return Study(
        title=title,
        parts=(part,),
        tuning_world=TUNING_SPLIT,
        worlds=SPLITS,
        seeds=SEEDS,
        options=Options(precision="mixed"),
    )
