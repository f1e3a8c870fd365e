"""Whether a safeguard was trained against an attack of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.core.presets import restore
from holdfast.core.types import HoldfastError
from holdfast.safeguards.base import Safeguard

TRAINED_AGAINST = "trained against"
"""The entry of a stage on a card: the kinds of the attacks that a safeguard from outside holdfast trained against."""


def seen_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether the safeguard was trained against an adversary of this attack's kind.

    The attacker's own rows are never seen in training.
    """
    return attack is not None and any(_kind_of(trained) == attack.kind() for trained in _trained_against(card))


def family_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether some adversary was of the attack's family, whatever its settings."""
    return attack is not None and any(
        trained.is_family_of(attack) if isinstance(trained, Attack) else trained.get("class") == type(attack).__name__
        for trained in _trained_against(card)
    )


def _kind_of(trained: Attack | Mapping[str, Any]) -> Any:
    return trained.kind() if isinstance(trained, Attack) else trained


def _trained_against(card: Mapping[str, Any]) -> Iterator[Attack | Mapping[str, Any]]:
    """The attacks that the stages of a model trained against; their kinds where this holdfast does not know a safeguard."""
    for stage in card.get("stages", []):
        try:
            safeguard: Safeguard = restore("holdfast.safeguards", stage["config"], older=True)
            attacks: Sequence[Attack | Mapping[str, Any]] = safeguard.trains_against()
        except HoldfastError:
            told = stage.get(TRAINED_AGAINST)
            attacks = [kind for kind in told if isinstance(kind, Mapping)] if isinstance(told, list) else []
        yield from attacks
