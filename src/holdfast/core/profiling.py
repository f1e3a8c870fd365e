"""Where the profile of a run is written."""

from __future__ import annotations

from pathlib import Path

TRACE = ".json.gz"
"""the ending of a trace"""


def profile_folder(out: Path, *, model: bool = False) -> Path:
    """In the folder of a run, or beside the folder of a model."""
    return out.with_name(f"{out.name}-profile") if model else out / "profile"
