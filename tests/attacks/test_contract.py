"""What every preset of every attack keeps: the folder is the list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from holdfast.attacks.base import Attack
from holdfast.attacks.reinforce import Reinforce
from holdfast.attacks.transfer import Transfer
from holdfast.core.presets import collect
from holdfast.testing import ATTACK, attacks, name_of, small
from tests.attacks.walk import distinct
from tests.conftest import SmallTestbed

ATTACKS: Mapping[str, Attack] = collect("holdfast.attacks")
DISTINCT = distinct(ATTACKS)
COMPOSED = {
    "abliterate-affine-searched",
    "kick-aside-1e-3-settle-1e-4-small",
    "own-outputs-hazard-adamw-1e-3",
    "distil-original-adamw-1e-3",
    "strip-difference-then-abliterate",
}
"""Presets made of parts that the default run has in other presets."""
Check = Callable[[Attack, SmallTestbed], None]


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """The default run has those that together show every setting of every class."""
    marked = [pytest.param(name, marks=() if name in DISTINCT - COMPOSED else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


every_attack = each(ATTACKS)
STEPS = {attacks.its_own_objective_improves: 12}
"""Updates of a walk, where a check needs more than four."""


@pytest.mark.parametrize(
    "check", [check for check in ATTACK if check is not attacks.it_is_described_and_restored], ids=name_of
)
@every_attack
def test_an_attack_keeps_the_contract(name: str, check: Check, tiny_testbed: SmallTestbed) -> None:
    attack: Any = ATTACKS[name]
    if isinstance(attack, Reinforce):
        # No answer of an untrained model may earn a reward; what weight decay then does is lost in rounding at lower rates.
        attack = replace(attack, learning_rate=max(attack.learning_rate, 1e-5))
    check(small(attack, STEPS.get(check, 4) if attack.optimises else 4), tiny_testbed)


# What the machinery asks an attack instead of looking at its fields. No model is needed, so every preset answers.


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_described_and_restored(name: str, tiny_testbed: SmallTestbed) -> None:
    attacks.it_is_described_and_restored(ATTACKS[name], tiny_testbed)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_says_its_size_and_what_it_takes_from_the_base(name: str) -> None:
    attack = ATTACKS[name]
    tune = getattr(attack, "tune", None)
    times = {"PreferenceTuning": 2, "Reinforce": getattr(attack, "group", 0)}.get(type(attack).__name__, 1)
    assert attack.rows_per_step == times * (tune or attack).batch_size  # type: ignore[union-attr]
    assert attack.transfers is isinstance(attack, Transfer)
    assert attack.uses_base or not attack.transfers


def test_a_family_is_the_class_whatever_the_settings() -> None:
    tuning, other = ATTACKS["full-adamw-1e-3"], ATTACKS["lora-r4-adamw-5e-3"]
    assert tuning.is_family_of(other)
    assert tuning.kind() != other.kind()
    assert not tuning.is_family_of(ATTACKS["jailbreak-backdoor-adamw-1e-3"])
