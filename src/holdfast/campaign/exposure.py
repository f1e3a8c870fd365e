"""Whether a safeguard was trained against an attack of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import _trained_against


def seen_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether the safeguard was trained against an adversary of this attack's kind.

    The attacker's own rows are never seen in training.
    """
    return attack is not None and any(trained.kind() == attack.kind() for trained in _trained_against(card))


def family_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether some adversary was of the attack's family, whatever its settings."""
    return attack is not None and any(trained.is_family_of(attack) for trained in _trained_against(card))
