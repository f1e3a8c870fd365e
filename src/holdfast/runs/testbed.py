"""The testbed of an invented world on disk: its domain, its base models beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast.core.files import claimed
from holdfast.core.types import HoldfastError, Sibling
from holdfast.jobs.graph import Job, Progress
from holdfast.jobs.run import run_jobs
from holdfast.runs.siblings import place_sibling
from holdfast.testbed.folder import MARKER, MASKED, MODELS, Kind, is_testbed, place, write_domain
from holdfast.testbed.world import Sizes

_SIZES = {"model": 2.4, "never_exposed": 1.0, MASKED: 2.4}
"""how long each base model takes to train beside the other"""


def make_testbed(
    folder: Path,
    seed: int,
    sizes: Sizes,
    kind: Kind,
    siblings: Sequence[Sibling] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
    masked: bool = False,
) -> None:
    """Write the domain of a world, and train the base models and make the siblings that are missing.

    With `masked`, that control is trained too.

    Raises:
        HoldfastError: the folder holds something else, or a model could not be trained.
    """
    arguments = {"folder": folder, "seed": seed, "sizes": sizes, "kind": kind}
    jobs = [
        Job(name=f"train {which}", call=place, arguments={**arguments, "which": which}, size=_SIZES[which])
        for which in (*MODELS, *([MASKED] if masked else []))
    ]
    original = next(job for job in jobs if job.arguments["which"] == "model")
    jobs += [
        Job(
            name=f"make the {which} sibling",
            call=place_sibling,
            arguments={**arguments, "which": which},
            # The earlier revision is trained from the start, and the others are made from the original.
            after=() if which == "earlier" else (original,),
            size=_SIZES["model"] if which == "earlier" else 0.1,
        )
        for which in siblings
    ]
    with claimed(folder, MARKER) as known:
        if known and not is_testbed(folder, seed, sizes, kind):
            raise HoldfastError(f"the output folder {folder} already holds something else; give a new or an empty one")
        write_domain(folder, seed, sizes, kind)
        for outcome in run_jobs(jobs, workers=2, on_progress=on_progress).values():
            if outcome.error is not None:
                raise HoldfastError(outcome.error)
