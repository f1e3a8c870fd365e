"""Sessions: a checkpoint made ready to be walked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.core.options import Options
from holdfast.engine.checkpoint import Checkpoint


def base_loader(checkpoint: Checkpoint, options: Options) -> Callable[[], Any] | None:
    """What loads the model before any safeguard; None where the checkpoint's card does not say where it is."""
    base = checkpoint.card.get("base")
    if not base:
        return None
    return lambda: Checkpoint(base["path"]).load(options.device, options.dtype, options.trust_remote_code)
