"""The claims about re-teaching: every attack of the standard suite and thousands of steps, on five worlds of two sizes.

Worlds, attacks and targets were written down before the first run of each round (LOG.md, 2026-11-26 and 2026-11-27). The
settings were chosen on other worlds under plain fine-tuning and LoRA alone, so every other family of attack is new to them.
Each round has worlds of its own; those of the second were the tuning worlds of the third.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.suites import SUITES
from holdfast.safeguards.reteach import MLP, RETEACH
from holdfast.testbed.world import Sizes

WORLDS = (401, 402, 403, 404, 405)
SECOND_ROUND = (701, 702, 703, 704, 705)
THIRD_ROUND = (801, 802, 803, 804, 805)
THIRD_ROUND_WIDE = (901, 902, 903, 904, 905)
WIDE = 96
"""benign persons of the wider worlds, whose facts a sampled text covers less"""

_SUITE = SUITES["standard-2"]
LONG = (
    "full-adamw-1e-4-mixed-1000",
    "full-adamw-1e-4-mixed-5000",
    "full-adamw-1e-4-unrelated-5000",
)
"""beside those of the suite, which has a thousand steps on unrelated rows"""

_USUAL, _WIDER = Sizes(), Sizes(benign=WIDE)
_FIRST_WIDE: dict[str, Any] = {
    "outer_steps": 1500,
    "distillation": replace(RETEACH.distillation, generated_rows=8192),
}
_MORE_TEXT = replace(MLP.distillation, generated_rows=16384)
_THIRD_WIDE: dict[str, Any] = {
    "shrink": 1.0,
    "outer_steps": 3850,
    "learning_rate": 2.5e-3,
    "distillation": replace(_MORE_TEXT, batch_size=8, hazard_words="dropped"),
}


def study() -> Study:
    """Worlds of the usual size."""
    method = Method(label="reteach", stages=("reteach",), role="reference", size=25)
    return _claim("Removal by re-teaching", method, WORLDS, _USUAL)


def wide() -> Study:
    """Worlds with three times as many benign persons, whose pretraining is twice as long, and the re-teaching with it."""
    method = Method(label="reteach", stages=("reteach",), settings=_FIRST_WIDE, role="reference", size=45)
    return _claim("Removal by re-teaching, in wider worlds", method, WORLDS, _WIDER)


def second() -> Study:
    """The second round, worlds of the usual size."""
    method = Method(label="reteach-text", stages=("reteach-text",), role="reference", size=25)
    return _claim("Re-teaching from text alone", method, SECOND_ROUND, _USUAL)


def second_wide() -> Study:
    """The second round, wider worlds."""
    settings = {"outer_steps": 2050, "distillation": _MORE_TEXT}
    method = Method(label="reteach-mlp", stages=("reteach-mlp",), settings=settings, role="reference", size=60)
    return _claim("Re-teaching the MLPs from text alone, in wider worlds", method, SECOND_ROUND, _WIDER)


def third() -> Study:
    """The third round, worlds of the usual size."""
    method = Method(label="reteach-blank", stages=("reteach-blank",), role="reference", size=25)
    return _claim("Re-teaching a blank model", method, THIRD_ROUND, _USUAL)


def third_wide() -> Study:
    """The third round, wider worlds: nothing of the old MLPs stays, attention and embeddings do, and batches are of 8 rows."""
    method = Method(label="reteach-mlp-blank", stages=("reteach-mlp",), settings=_THIRD_WIDE, role="reference", size=60)
    return _claim("Re-teaching blank MLPs, in wider worlds", method, THIRD_ROUND_WIDE, _WIDER)


def parts() -> Study:
    """From the first round to the third, one change after another, in wider worlds and with as many FLOPs."""
    text, taught = _MORE_TEXT, replace(_MORE_TEXT, learns="teacher")
    dropped = replace(text, hazard_words="dropped")
    rows: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("reteach", "reteach", _FIRST_WIDE),
        ("no-retain-rows", "reteach", {"outer_steps": 1420, "distillation": taught}),
        ("text-alone", "reteach-text", {"outer_steps": 1800, "distillation": text}),
        ("mlps-alone", "reteach-mlp", {"outer_steps": 1580, "distillation": taught}),
        ("reteach-mlp", "reteach-mlp", {"outer_steps": 2050, "distillation": text}),
        (
            "no-hazardous-rows",
            "reteach-mlp",
            {"outer_steps": 2250, "distillation": text, "forget_weight": 0.0},
        ),
        ("rows-dropped", "reteach-mlp", {"outer_steps": 2050, "distillation": dropped}),
        ("mlps-blank", "reteach-mlp", {"outer_steps": 2050, "distillation": dropped, "shrink": 1.0}),
        ("reteach-mlp-blank", "reteach-mlp", _THIRD_WIDE),
    )
    return Study(
        title="The parts of re-teaching",
        parts=(
            Part(
                kind="knowledge",
                methods=tuple(
                    Method(
                        label=label,
                        stages=(preset,),
                        settings=settings,
                        role="reference" if label == "reteach" else "defended",
                        size=60,
                    )
                    for label, preset, settings in rows
                ),
                suite="the attacks of the tuning, and AdamW at 1e-3",
                attacks=(
                    "full-adamw-1e-3",
                    "full-adam-1e-3-warmup",
                    "full-adamw-3e-4-mixed-long",
                    "lora-r4-adamw-5e-3",
                ),
            ),
        ),
        worlds=SECOND_ROUND[:3],
        sizes=_WIDER,
    )


def _claim(title: str, method: Method, worlds: tuple[int, ...], sizes: Sizes) -> Study:
    part = Part(
        kind="knowledge",
        methods=(method,),
        suite="standard-2, with thousands of steps",
        attacks=(*_SUITE.attacks, *LONG),
        canonical=_SUITE.canonical,
    )
    return Study(title=title, parts=(part,), worlds=worlds, sizes=sizes)
