"""The red team on refusals: safeguards of refusal as their presets stand, under an attack of every family.

Worlds and attacks were written down before the first run (LOG.md, 2026-11-27).
"""

from __future__ import annotations

from holdfast.recipes.claims import ATTACKS
from holdfast.recipes.paper_tables import PAPER_REFUSAL, TUNING_WORLD
from holdfast.runs.study.study import Part, Study

WORLDS = (601, 602, 603)
LABELS = ("refusal-trained", "circuit-breakers", "tar")
MEANT_FOR_REFUSALS = (
    "abliterate-several",
    "jailbreak-backdoor-adamw-1e-3",
    "preference-benign-10-adamw-3e-4",
    "own-outputs-benign-adamw-1e-3",
    "head-offsets-half-adamw-1e-2",
    "reinforce-64-adamw-1e-3",
    "strip-difference-then-full-adamw-1e-3",
)
"""Abliteration takes its directions from the model that it attacks, so anew after each safeguard."""


def study() -> Study:
    """Refusal training, and circuit breakers and TAR on top of it; nothing is tuned."""
    part = Part(
        kind="refusal",
        methods=tuple(method for method in PAPER_REFUSAL if method.label in LABELS),
        suite="families, with what is meant for refusals",
        attacks=(*ATTACKS, *MEANT_FOR_REFUSALS),
        tuning_attacks=(),
        selection="compliance_selection",
    )
    return Study(title="The red team on refusals", parts=(part,), tuning_world=TUNING_WORLD, worlds=WORLDS, trials=0)
