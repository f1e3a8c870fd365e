"""The demo: on the embedded testbed, why a shallow safeguard fails and what TAR buys.

Everything is one graph of jobs: the two base models are trained side by side, and each model is attacked as soon as it
exists, while the next is still being made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.campaign.cell import record_failure, run_cell
from holdfast.campaign.cells import Campaign, Model, untouched_undefended
from holdfast.campaign.run import cell_jobs, write_plan
from holdfast.core.files import claim_output, write_text
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.local import Job, Outcome, Progress, run_jobs
from holdfast.runs.stages import Recipe, build
from holdfast.runs.suites import SUITES, called
from holdfast.testbed.folder import place, write_domain
from holdfast.testbed.world import Sizes

SUITE = "demo-2"
SEEDS = tuple(range(5))
"""of every attack: fewer give no interval, and so no verdict"""

STAGES = {"random-mapping": ("random-mapping",), "tar": ("random-mapping", "tar")}
"""Label -> the stages that make it."""


def campaign(out: Path) -> Campaign:
    """The demo's cells; the models lie under `out`, or will."""
    return Campaign(
        models=(
            Model(label="undefended", path=str(out / "testbed" / "model"), role="undefended"),
            Model(label="random-mapping", path=str(out / "models" / "random-mapping"), role="reference"),
            Model(label="tar", path=str(out / "models" / "tar"), role="defended"),
            Model(label="never-exposed", path=str(out / "testbed" / "never_exposed"), role="never-exposed"),
            Model(label="destroyed", path=str(out / "testbed" / "model"), role="destroyed"),
        ),
        domain=out / "testbed",
        attacks=tuple((name, pick("holdfast.attacks", name)) for name in SUITES[SUITE].attacks),
        seeds=SEEDS,
        only=dict.fromkeys(("undefended", "destroyed"), SUITES[SUITE].attacks[:1]),
        dense=True,
    )


def run_demo(
    out: Path, seed: int, workers: int = 2, command: str = "", on_progress: Callable[[Progress], None] = lambda p: None
) -> list[Outcome]:
    """Make the testbed and the models of `seed` under `out`, attack them and write the records.

    What is there already is not made again.

    Raises:
        HoldfastError: `out` holds something else, or a model could not be made.
    """
    marker = out / "demo.json"
    if not marker.is_file():
        claim_output(out)
    elif (held := _seed_of(marker)) != seed:
        raise HoldfastError(f"{out} holds the demo of seed {held}; give another --out for seed {seed}")
    write_text(marker, json.dumps({"seed": seed}) + "\n")
    write_domain(out / "testbed", seed, Sizes())
    plan = campaign(out)
    cells = list(plan.cells())
    options = Options()
    ready = {
        "undefended": ("train the undefended model",),
        "random-mapping": ("Random Mapping",),
        "tar": ("TAR",),
        "never-exposed": ("train the never-exposed control",),
        "destroyed": ("train the undefended model",),
    }
    outcomes = run_jobs(
        [*_making(out, seed), *cell_jobs(cells, out, options, untouched_undefended(cells), ready)],
        workers,
        on_progress=on_progress,
    )
    making = [outcome for name, outcome in outcomes.items() if run_cell != outcome.job.call]
    for outcome in making:
        if outcome.error is not None:
            raise HoldfastError(f"{outcome.job.name} failed: {outcome.error}")
    for cell in cells:
        if outcomes[cell.name].error is not None:
            record_failure(cell, out, outcomes[cell.name])
    write_plan(
        campaign(out), out, [cell.id for cell in cells], title="holdfast demo", suite=called(SUITE), command=command,
        canonical=SUITES[SUITE].attacks[0],
    )  # fmt: skip
    return list(outcomes.values())


def _seed_of(marker: Path) -> int:
    try:
        return int(json.loads(marker.read_text(encoding="utf-8"))["seed"])
    except (ValueError, TypeError, KeyError) as error:
        raise HoldfastError(f"{marker} is damaged; remove it with its folder, or give another --out") from error


def _making(out: Path, seed: int) -> list[Job]:
    """The jobs that make the models, each before what depends on it."""
    testbed: dict[str, Any] = {"folder": out / "testbed", "seed": seed, "sizes": Sizes()}
    return [
        Job(name="train the undefended model", call=place, arguments={**testbed, "which": "model"}, size=2400),
        Job(
            name="train the never-exposed control",
            call=place,
            arguments={**testbed, "which": "never_exposed"},
            size=1000,
        ),
        Job(
            name="Random Mapping",
            call=make_safeguarded,
            arguments={"out": out, "label": "random-mapping", "seed": seed},
            after=("train the undefended model",),
            size=600,
        ),
        Job(
            name="TAR",
            call=make_safeguarded,
            arguments={"out": out, "label": "tar", "seed": seed},
            after=("Random Mapping",),
            size=4300,
        ),
    ]


def make_safeguarded(out: Path, label: str, seed: int, on_step: Callable[[int, int], None]) -> None:
    """Build one of the demo's checkpoints, unless it is there."""
    folder = out / "models" / label
    if folder.is_dir():
        return
    recipe = Recipe(
        model=Checkpoint(str(out / "testbed" / "model")),
        domain=out / "testbed",
        stages=tuple((name, pick("holdfast.safeguards", name)) for name in STAGES[label]),
        seed=seed,
    )
    build(recipe, folder, on_step)
