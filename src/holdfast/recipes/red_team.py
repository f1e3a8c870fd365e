"""The red teams by name: every family of attack against six safeguards on the testbed, or against one of holdfast's own."""

from __future__ import annotations

from dataclasses import replace

from holdfast.recipes.paper_tables import TUNING_WORLD
from holdfast.runs.search.search import usable_families
from holdfast.runs.study.method import Method
from holdfast.runs.study.red_team import RedTeam

WORLDS = (31, 32, 33)
MORE_WORLDS = (31, 32, 33, 34, 35)
BLANK_WORLDS = (41, 42, 43)

_METHODS = (
    Method(label="random-mapping", stages=("random-mapping",), role="reference", size=10),
    Method(label="rmu", stages=("rmu",), size=10),
    Method(label="rep-select", stages=("rep-select",), size=8),
    Method(label="undo-generated", stages=("random-mapping", "undo-generated"), size=70),
    Method(label="reteach", stages=("reteach",), size=25),
    Method(label="tar", stages=("random-mapping", "tar"), size=130),
)

_HELD_OUT = ("quantisation",)
"""Met by no search and no adversary, and so blind for every model."""


SINCE = (
    "sidestep",
    "kick-settle",
    "preference",
    "own-outputs",
    "reinforcement",
    "distillation",
    "representation",
    "difference",
    "difference-then-full",
)
"""Families that came after the published red team: the full one searches them too."""


def short() -> RedTeam:
    """The red team of the results: searches of twelve trials, one attack seed on each of three worlds."""
    families = usable_families(held_out=(*_HELD_OUT, *SINCE))
    return RedTeam(
        title="The red team",
        methods=_METHODS,
        targets=("random-mapping", "tar", "reteach"),
        families=families,
        held_out=_HELD_OUT,
        trials=12,
        tuning_world=TUNING_WORLD,
        worlds=WORLDS,
        seeds=(0,),
    )


def full() -> RedTeam:
    """Longer searches, more worlds, three attack seeds each."""
    families = usable_families(held_out=_HELD_OUT)
    return replace(
        short(), title="The red team, in full", families=families, trials=60, worlds=MORE_WORLDS, seeds=(0, 1, 2)
    )


def blank() -> RedTeam:
    """Every family against a blank model that was taught again, on worlds of its own; Random Mapping is the positive control."""
    return replace(
        short(),
        title="The red team on re-teaching a blank model",
        methods=(_METHODS[0], Method(label="reteach-blank", stages=("reteach-blank",), size=25)),
        targets=("reteach-blank",),
        families=usable_families(held_out=_HELD_OUT),
        worlds=BLANK_WORLDS,
    )
