"""What a search may vary: every family builds, and what is described comes back."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from holdfast.attacks.space import Choice, Family, Log, collect_families
from holdfast.core.presets import describe, pick, restore
from holdfast.core.types import HoldfastError

FAMILIES = collect_families()


def drawn(family: Family, rng: random.Random) -> dict[str, Any]:
    return {
        name: rng.choice(held.options)
        if isinstance(held, Choice)
        else held.low * (held.high / held.low) ** rng.random()
        for name, held in family.space.items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_is_drawn_is_an_attack_that_comes_back_from_its_description(name: str) -> None:
    family, rng = FAMILIES[name], random.Random(name)
    for _ in range(8):
        attack = family.built(drawn(family, rng))
        assert type(attack) is type(family.attack)
        assert restore("holdfast.attacks", json.loads(json.dumps(describe(attack)))) == attack


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_trial_is_the_preset_and_lies_in_the_space(name: str) -> None:
    family = FAMILIES[name]
    assert family.built(family.preset()) == family.attack
    for field, value in family.preset().items():
        held = family.space[field]
        assert held.low <= value <= held.high if isinstance(held, Log) else value in held.options


def test_a_name_with_a_dot_reaches_into_the_fine_tuning() -> None:
    family = FAMILIES["reparameterisation"]
    attack = family.built({"tune.learning_rate": 3e-4, "clip": 8.0})
    assert (attack.tune.learning_rate, attack.clip) == (3e-4, 8.0)  # type: ignore[attr-defined]
    assert attack.tune.batch_size == family.attack.tune.batch_size  # type: ignore[attr-defined]


def test_a_description_of_another_version_is_refused() -> None:
    with pytest.raises(HoldfastError, match="no class 'Gone'"):
        restore("holdfast.attacks", {"class": "Gone"})
    with pytest.raises(HoldfastError, match="has no field"):
        restore("holdfast.attacks", {**describe(pick("holdfast.attacks", "int8")), "colour": 1})
