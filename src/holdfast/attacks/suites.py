"""Suites: named tuples of attack presets. A suite that changes gets a new name, so that a figure keeps its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from holdfast.attacks.base import Attack
from holdfast.core.domain import nearest
from holdfast.core.presets import pick, restore
from holdfast.core.types import HoldfastError

SUITES: Mapping[str, tuple[str, ...]] = {
    # The newcomer's red team: eight short attacks and the worst long one found so far.
    "demo": (
        "full-adamw-3e-4",
        "full-adamw-1e-3",
        "full-adamw-3e-3",
        "full-adamw-1e-3-ood",
        "full-adamw-1e-3-retain-then-forget",
        "full-adamw-1e-3-mixed",
        "lora-r4-adamw-5e-3",
        "full-adamw-1e-3-cosine-b8",
        "full-adamw-3e-4-mixed-long",
    ),
    # Eight attacks across the axes (rate, optimizer, schedule, data, rank), for models as small as the testbed's.
    "quick": (
        "full-adamw-1e-4",
        "full-adamw-1e-3",
        "full-adamw-1e-3-ood",
        "full-adamw-1e-3-coin-flip",
        "full-adamw-1e-3-mixed",
        "full-sgd-nesterov-1e-1",
        "full-adamw-1e-3-sgdr",
        "lora-r4-adamw-5e-3",
    ),
    # One attack of every family, for models as small as the testbed's. Two of them need the model before the safeguard.
    "families": (
        "full-adamw-1e-3",
        "lora-r4-adamw-5e-3",
        "full-lion-6e-5",
        "full-muon-5e-4",
        "kick-1e-2-settle-1e-3",
        "evolution-vectors-adam-1e-2",
        "abliterate-then-full-adamw-3e-4",
        "latent-pgd-three-layers",
        "low-rank-50-then-full-adamw-1e-3",
        "int4",
        "defence-directions-4",
        "merge-base-25-then-full-adamw-1e-3",
        "refold-then-full-adamw-1e-3",
    ),
    # The paper's five attacks on refusal training (arXiv 2408.00761), complete.
    "paper-refusal": (
        "full-adamw-1e-5-warmup-b32",
        "full-adamw-1e-5-b32",
        "full-adamw-1e-5-b16",
        "full-adamw-2e-5-b32",
        "full-adamw-4e-5-b32",
    ),
    # The same five at fifty times the rate, for models as small as the testbed's.
    "paper-refusal-small": (
        "full-adamw-5e-4-warmup-b32",
        "full-adamw-5e-4-b32",
        "full-adamw-5e-4-b16",
        "full-adamw-1e-3-b32",
        "full-adamw-2e-3-b32",
    ),
    # The same axes at the rates of the paper's red team, for models of billions of weights.
    "quick-large": (
        "full-adamw-2e-6",
        "full-adamw-2e-5",
        "full-adamw-4e-5",
        "full-adamw-2e-5-cosine",
        "full-adamw-2e-5-ood",
        "full-adamw-2e-5-retain-then-forget",
        "full-schedule-free-2e-5",
        "lora-r16-adamw-2e-4",
    ),
}


def attacks_of(suite: str) -> dict[str, Attack]:
    """The attacks of a suite by name, or of a folder that a search wrote.

    Raises:
        HoldfastError: there is no such suite, and no such folder.
    """
    if suite in SUITES:
        return {name: pick("holdfast.attacks", name) for name in SUITES[suite]}
    if Path(suite).is_dir():
        return load_suite(Path(suite))
    raise HoldfastError(f"there is no suite {suite!r}; {nearest(suite, SUITES)}")


def load_suite(folder: Path) -> dict[str, Attack]:
    """The attacks that a search left in `suite.json`, by name.

    Raises:
        HoldfastError: there is none, or it cannot be read.
    """
    path = folder / "suite.json"
    if not path.is_file():
        raise HoldfastError(
            f"{folder} holds no attacks: it has no suite.json; give a folder that holdfast search wrote"
        )
    try:
        attacks = json.loads(path.read_text(encoding="utf-8"))["attacks"]
        return {name: restore("holdfast.attacks", described) for name, described in attacks.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise HoldfastError(f"{path} cannot be read ({error}); run the search again into a new folder") from error
