"""Whether a safeguard was trained against an attack of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.core.presets import restore
from holdfast.core.types import HoldfastError
from holdfast.safeguards.base import Safeguard


def seen_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether the safeguard was trained against an adversary of this attack's kind.

    The attacker's own rows are never seen in training.
    """
    return attack is not None and any(trained.kind() == attack.kind() for trained in _trained_against(card))


def family_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether some adversary was of the attack's family, whatever its settings."""
    return attack is not None and any(trained.is_family_of(attack) for trained in _trained_against(card))


def _trained_against(card: Mapping[str, Any]) -> Iterator[Attack]:
    """The attacks that the stages of a model trained against."""
    for stage in card.get("stages", []):
        try:
            safeguard: Safeguard = restore("holdfast.safeguards", stage["config"], older=True)
            attacks = safeguard.trains_against()
        except HoldfastError:
            continue  # a safeguard that this holdfast does not know
        yield from attacks
