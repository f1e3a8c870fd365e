"""A testbed on disk: its domain, its base models beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.core.files import claim_output
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Job, Progress
from holdfast.jobs.local import run_jobs
from holdfast.testbed.folder import MODELS, Kind, is_testbed, place, write_domain
from holdfast.testbed.world import Sizes

_SIZES = {"model": 2.4, "never_exposed": 1.0}
"""how long each base model takes to train beside the other"""


def make_testbed(
    folder: Path,
    seed: int,
    sizes: Sizes,
    kind: Kind,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Write the domain of a world and train the base models that are missing.

    Raises:
        HoldfastError: the folder holds something else, or a model could not be trained.
    """
    if not is_testbed(folder, seed, sizes, kind):
        claim_output(folder)
    write_domain(folder, seed, sizes, kind)
    arguments = {"folder": folder, "seed": seed, "sizes": sizes, "kind": kind}
    jobs = [
        Job(name=f"train {which}", call=place, arguments={**arguments, "which": which}, size=_SIZES[which])
        for which in MODELS
    ]
    for outcome in run_jobs(jobs, workers=2, on_progress=on_progress).values():
        if outcome.error is not None:
            raise HoldfastError(outcome.error)
