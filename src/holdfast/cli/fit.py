"""The warning where settings are for models of another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.cli.terminal import say
from holdfast.core.model_size import SIZES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

_SHOWN = 3
"""presets that a warning names"""


def warn_of_size(console: Console, model: str, kind: str, labels: Iterable[str]) -> None:
    """Say which of the presets are for models of another size, and what there is for this one.

    Args:
        console: for people.
        model: a folder or a hub id; nothing is said where it cannot be looked at.
        kind: "attacks" or "safeguards".
        labels: of the presets that are used.
    """
    from holdfast.runs.fitting import misfits, model_size, sizes_of_attack, sizes_of_safeguard, suite_for

    size, sizes_of = model_size(model), sizes_of_attack if kind == "attacks" else sizes_of_safeguard
    if not (found := misfits(size, ((label, sizes_of(label)) for label in labels))):
        return
    named = list(found)[:_SHOWN]
    more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
    meant = " or ".join(weights for one, weights in SIZES.items() if any(one in sizes for sizes in found.values()))
    if kind == "attacks":
        instead = f"; the suite {suite_for(model)} fits"
    else:
        instead = "" if size == "tiny" else f"; `holdfast list safeguards` has names that end in -{size}"
    say(
        console,
        f"Warning: {', '.join(named)}{more} {'is' if len(found) == 1 else 'are'} for models with {meant}, and {model} has "
        f"{SIZES[size]}{instead}.",
    )
