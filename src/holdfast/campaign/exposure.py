"""Whether a safeguard was trained against an attack of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.core.presets import describe

_NO_KIND = (
    "max_steps", "batch_size", "rows", "learning_rate", "benign_first", "weight_decay", "warmup_steps", "restart_every",
    "max_grad_norm", "lora_alpha", "lora_dropout", "ascent_steps",
)  # fmt: skip
"""Fields in which an attack may differ from an adversary and still be of its kind."""


def seen_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether the safeguard was trained against an adversary of this attack's kind.

    Alike in all but lengths and sizes (`_NO_KIND`), and with a rate among the adversary's. The attacker's own rows are never
    seen in training.
    """
    if attack is None:
        return False
    wanted = describe(attack)
    for adversary in _adversaries(card):
        trained = adversary["attack"]
        rates = adversary["learning_rates"] or [trained.get("learning_rate")]
        switches = bool(adversary["switch"]) or trained.get("benign_first", 0) > 0
        if (
            all(trained.get(name) == wanted.get(name) for name in {*trained, *wanted} - {*_NO_KIND})
            and wanted.get("learning_rate") in rates
            and switches == (wanted.get("benign_first", 0) > 0)
            and bool(trained.get("ascent_steps")) == bool(wanted.get("ascent_steps"))
        ):
            return True
    return False


def family_in_training(card: Mapping[str, Any], attack: Attack | None) -> bool:
    """Whether some adversary was of the attack's family, whatever its settings: the same class of attack."""
    return any(adversary["attack"]["class"] == type(attack).__name__ for adversary in _adversaries(card))


def _adversaries(card: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The described adversaries of every stage that made a model."""
    for stage in card.get("stages", []):
        yield from stage["config"].get("adversaries", [])
