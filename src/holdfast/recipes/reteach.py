"""The claims about re-teaching: every attack of the standard suite and thousands of steps, on five worlds of two sizes.

Worlds, attacks and targets were written down before the first run of each round (LOG.md, 2026-11-26 and 2026-11-27). The
settings were chosen on worlds 100 to 103 under plain fine-tuning and LoRA alone, so every other family of attack is new to
them. The second round has other worlds than the first.
"""

from __future__ import annotations

from dataclasses import replace

from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES
from holdfast.safeguards.reteach import MLP, RETEACH
from holdfast.testbed.world import Sizes

WORLDS = (401, 402, 403, 404, 405)
SECOND_ROUND = (701, 702, 703, 704, 705)
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


def second() -> Study:
    """The second round, worlds of the usual size."""
    return Study(
        title="Re-teaching from text alone",
        parts=(_part(Method(label="reteach-text", stages=("reteach-text",), role="reference", size=25)),),
        worlds=SECOND_ROUND,
    )


def second_wide() -> Study:
    """The second round, wider worlds."""
    settings = {"outer_steps": 2050, "distillation": replace(MLP.distillation, generated_rows=16384)}
    method = Method(label="reteach-mlp", stages=("reteach-mlp",), settings=settings, role="reference", size=60)
    return Study(
        title="Re-teaching the MLPs from text alone, in wider worlds",
        parts=(_part(method),),
        worlds=SECOND_ROUND,
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
