"""How work is run: device, precision, what is kept."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.types import Computation


@dataclass(frozen=True, kw_only=True)
class Options:
    """How cells are run; nothing here changes a number on the same hardware."""

    device: str = "cpu"
    dtype: Computation = "float32"
    """precision of weights and products"""
    trust_remote_code: bool = False
    keep_attacked_weights: bool = False
    """write the attacked model of each cell into a folder named TAMPERED-…"""
    resumable_attacks: bool = False
    """keep an attack's state on disk while its cell runs, so that it goes on after a kill"""
    track: tuple[str, ...] = ()
    """tools that show a run while it goes on (`core.tracking`)"""
