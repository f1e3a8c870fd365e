"""The jobs of a study on one world: its base models, its trials, the methods' models, the attacks on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from holdfast.campaign.cell import record_failure
from holdfast.campaign.cells import Campaign, untouched_undefended
from holdfast.campaign.run import cell_jobs, write_plan
from holdfast.core.options import Options
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.runs.real_testbed import make_real_testbed
from holdfast.runs.study.method import Method
from holdfast.runs.study.tuning import make, run_trial
from holdfast.testbed.folder import Kind, place, write_domain
from holdfast.testbed.real.folder import RealKind
from holdfast.testbed.world import Sizes

BASE_SECONDS = {"model": 85.0, "never_exposed": 38.0}
"""what training a base model takes on one core, about"""
ASKING_SECONDS = 240.0
"""what asking a released model of 135 million weights for its facts takes on one core, about"""
CELL_SECONDS = 4.5
"""what an attack takes on one core, about"""


@dataclass(frozen=True, kw_only=True)
class World:
    """The folders of one world's models, and the jobs that make them. Each job is made once, so that others can wait for it."""

    folder: Path
    seed: int
    """of the invented world; on the real testbed, of the split of the facts"""
    kind: Kind | RealKind
    sizes: Sizes
    """of an invented world"""
    title: str = ""
    """stands before the names of its jobs"""
    options: Options = Options()
    """precision of models, trials and attacks"""

    @property
    def real(self) -> bool:
        """Whether the model is a released one, so that nothing is pretrained here and no never-exposed model can exist."""
        return self.kind in get_args(RealKind)

    @property
    def testbed(self) -> Path:
        return self.folder / "testbed"

    def model_of(self, method: Method) -> Path:
        """The folder of a method's model."""
        return self.folder / "models" / method.label

    def write(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
        """Write the domain, unless the folder has it. The real testbed's needs answers of the model, and brings the model too.

        Raises:
            HoldfastError: as `make_real_testbed`.
        """
        if self.kind == "real" or self.kind == "real-refusal":
            make_real_testbed(self.testbed, self.seed, None, on_progress, self.kind)
        else:
            write_domain(self.testbed, self.seed, self.sizes, self.kind)

    def training(self) -> dict[str, Job]:
        """The jobs that train the base models, by their folders' names; none for a released model."""
        if self.real:
            return {}
        arguments = {"folder": self.testbed, "seed": self.seed, "sizes": self.sizes, "kind": self.kind}
        return {
            which: Job(
                name=f"{self.title}train {which}", call=place, arguments={**arguments, "which": which}, size=seconds
            )
            for which, seconds in BASE_SECONDS.items()
        }

    def making(
        self,
        methods: Sequence[Method],
        training: Job | None,
        trials: Mapping[str, Sequence[Path]],
        trying: Mapping[str, Sequence[Job]],
    ) -> dict[str, Job]:
        """The jobs that build the methods' models, by label, each after the model that it starts from and after its trials.

        Args:
            methods: in an order in which each comes after the one that it starts from.
            training: trains the undefended model; None: the model is there.
            trials: by label, the files of a method's trials.
            trying: by label, the jobs that write them.
        """
        jobs: dict[str, Job] = {}
        by_label = {method.label: method for method in methods}
        for method in methods:
            start = self.model_of(by_label[method.start]) if method.start else self.testbed / "model"
            jobs[method.label] = Job(
                name=f"{self.title}{method.label}",
                call=make,
                arguments={
                    "method": method,
                    "trials": tuple(trials.get(method.label, ())),
                    "domain": self.testbed,
                    "start": start,
                    "out": self.model_of(method),
                    "seed": self.seed if method.seed is None else method.seed,
                    "options": self.options,
                },
                after=tuple(
                    filter(None, (jobs[method.start] if method.start else training, *trying.get(method.label, ())))
                ),
                size=method.size,
            )
        return jobs

    def trying(
        self, method: Method, start: Job | None, files: Sequence[Path], attacks: tuple[str, ...], selection: str
    ) -> list[Job]:
        """The jobs of a method's trials, one a file; `start` makes the model that the method starts from, None: it is there."""
        origin = self.folder / "models" / method.start if method.start else self.testbed / "model"
        jobs = []
        for index, file in enumerate(files):
            settings = method.trial(index)
            arguments: dict[str, Any] = {
                "file": file,
                "domain": self.testbed,
                "start": origin,
                "stages": method.built({**settings, **method.shorter}),
                "settings": settings,
                "attacks": attacks,
                "selection": selection,
                "seed": self.seed,
                "options": self.options,
            }
            name = f"{self.title}{method.label}, trial {index}"
            size = method.size + CELL_SECONDS * len(attacks)
            jobs.append(Job(name=name, call=run_trial, arguments=arguments, after=(start,) if start else (), size=size))
        return jobs

    def attacking(
        self, campaign: Campaign, training: Mapping[str, Job], making: Mapping[str, Job], typical: float
    ) -> list[Job]:
        """The jobs of a campaign's cells, each after the model that it attacks; `typical` seconds an attack, about."""
        after = {label: (job,) for label, job in making.items()}
        if training:
            after |= {"undefended": (training["model"],), "destroyed": (training["model"],)}
            after |= {"never-exposed": (training["never_exposed"],)}
        cells = list(campaign.cells())
        return cell_jobs(cells, self.folder, untouched_undefended(cells), after, title=self.title, typical=typical)

    def record(
        self,
        campaign: Campaign,
        making: Mapping[str, Job],
        attacking: Sequence[Job],
        outcomes: Mapping[Job, Outcome],
        **details: Any,
    ) -> None:
        """Record failures and write the plan of the campaign. A method that could not be built has no cells."""
        failed = {label: outcomes[job].error for label, job in making.items() if outcomes[job].error is not None}
        for job in attacking:
            cell, outcome = job.arguments["cell"], outcomes[job]
            if outcome.error is not None and cell.model.label not in failed:
                record_failure(cell, self.folder, outcome.error, outcome.seconds)
        built = replace(campaign, models=tuple(model for model in campaign.models if model.label not in failed))
        write_plan(built, self.folder, [cell.id for cell in built.cells()], not_built=failed, **details)
