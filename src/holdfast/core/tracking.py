"""Which tools a run's figures may be shown in while the run goes on, and whether they are installed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from holdfast.core.domain import nearest
from holdfast.core.escape import short
from holdfast.core.types import HoldfastError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Each is a package of its name, and an extra of holdfast."""


def trackers_in(texts: Iterable[str]) -> tuple[str, ...]:
    """The trackers that the command line names, each once: one a text, or several with commas between.

    Raises:
        HoldfastError: a name is unknown, or its package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise HoldfastError(f"there is no tracker {short(name)!r}; {nearest(name, TRACKERS)}")
        if find_spec(name) is None:
            raise HoldfastError(
                f"{name} is not installed; run pip install 'holdfast[{name}]', or leave --track {name} out"
            )
    return names


def tracking_folder(out: Path, *, model: bool = False) -> Path:
    """Where trackers that write files write them: in the folder of a run, or beside the folder of a model."""
    return out.with_name(f"{out.name}-tracking") if model else out / "tracking"


def where_to_look(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Tracker -> the command that shows what it holds, or the server that it sends to."""
    server = os.environ.get("MLFLOW_TRACKING_URI")
    places = {
        "tensorboard": f"tensorboard --logdir {folder / 'tensorboard'}",
        "wandb": f"wandb sync {folder}/wandb/offline-*" if os.environ.get("WANDB_MODE") == "offline" else "",
        "mlflow": server or f"mlflow ui --backend-store-uri {folder / 'mlflow'}",
        "trackio": "trackio show --project holdfast",
    }
    return {name: places[name] for name in names}
