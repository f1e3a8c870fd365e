"""The real testbed: the demo on a released model, and the table of safeguards on it.

The presets in `-small` were fixed on the split of seed 7. The table's splits are others: other countries are forgotten, held out,
attacked and asked. A model of 135 million weights leaves few worlds and few seeds within reach of two cores.
"""

from __future__ import annotations

from holdfast.core.options import Options
from holdfast.report.studies.steps import Along
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES, called

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
_SHORT_SECONDS, _LONG_SECONDS = 170.0, 500.0
"""what 20 to 100 updates, and 1,000 updates of two rows, take on one core with bfloat16 products and measuring, about"""

_REFERENCE = Method(label="random-mapping", stages=("random-mapping-small",), role="reference", size=240)
_TAR = Method(label="tar", stages=("random-mapping-small", "tar-small"), size=900)
METHODS = (
    _REFERENCE,
    Method(label="rmu", stages=("rmu-small",), size=240),
    Method(label="circuit-breakers", stages=("circuit-breakers-small",), size=240),
    _TAR,
)

DEMO_SUITE = "demo-real"


def demo(seed: int, options: Options) -> Study:
    """Random Mapping as the reference and TAR on top of it, beside the undefended model, on the split of `seed`."""
    attacks = SUITES[DEMO_SUITE].attacks
    part = Part(
        kind="real",
        methods=(_REFERENCE, _TAR),
        suite=called(DEMO_SUITE),
        attacks=attacks,
        details={"canonical": attacks[0]},
        cell_seconds=_SHORT_SECONDS,
    )
    return Study(
        title="holdfast demo on a real model", parts=(part,), worlds=(seed,), seeds=tuple(range(5)), options=options
    )


def study() -> Study:
    """Every method of the table on three splits, a training on each, under a short and a long attack with two seeds each."""
    attacks = tuple(dict.fromkeys(column.attack for column in ALONG))
    part = Part(
        kind="real",
        methods=METHODS,
        suite="AdamW at 1e-4 for 100 and 1,000 updates",
        attacks=attacks,
        milestones=tuple(column.step for column in ALONG),
        cell_seconds=(_SHORT_SECONDS + _LONG_SECONDS) / 2,
    )
    return Study(
        title="Safeguards on a real model",
        parts=(part,),
        tuning_world=TUNING_SPLIT,
        worlds=SPLITS,
        seeds=SEEDS,
        options=Options(precision="mixed"),
    )
