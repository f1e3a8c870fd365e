"""The claim about `reteach`: every attack of the standard suite and thousands of steps, on five worlds of two sizes.

The worlds, the attacks and the targets were written down before the first run (LOG.md, 2026-11-26). `reteach` was chosen on
worlds 100 and 101 under plain fine-tuning and LoRA alone, so every other family of attack is new to it.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES
from holdfast.safeguards.reteach import RETEACH
from holdfast.testbed.world import Sizes

WORLDS = (401, 402, 403, 404, 405)
WIDE = 96
"""benign persons of the wider worlds, whose facts a sampled text covers less"""

_SUITE = SUITES["standard-2"]
LONG = (
    "full-adamw-1e-4-mixed-1000",
    "full-adamw-1e-4-mixed-5000",
    "full-adamw-1e-4-unrelated-5000",
)
"""beside those of the suite, which has a thousand steps on unrelated rows"""


def study() -> Study:
    """Worlds of the usual size."""
    return Study(
        title="Removal by re-teaching",
        parts=(_part(Method(label="reteach", stages=("reteach",), role="reference", size=25)),),
        worlds=WORLDS,
    )


def wide() -> Study:
    """Worlds with three times as many benign persons, whose pretraining is twice as long, and the re-teaching with it."""
    text = replace(RETEACH.distillation, generated_rows=8192)
    settings = {"outer_steps": 1500, "distillation": text}
    method = Method(label="reteach", stages=("reteach",), settings=settings, role="reference", size=45)
    return Study(
        title="Removal by re-teaching, in wider worlds",
        parts=(_part(method),),
        worlds=WORLDS,
        sizes=Sizes(benign=WIDE),
    )


def _part(method: Method) -> Part:
    return Part(
        kind="knowledge",
        methods=(method,),
        suite="standard-2, with thousands of steps",
        attacks=(*_SUITE.attacks, *LONG),
        canonical=_SUITE.canonical,
    )
