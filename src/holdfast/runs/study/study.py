"""A study: safeguards tuned alike on one world, then attacked on worlds that nobody has looked at.

1. Trials: each method is built `trials` times on the tuning world, with its preset's settings and with settings drawn from its
   space, and measured on the selection questions before and after the tuning attacks. The best trial's settings are kept.
2. Claims: on every claim world each method is built with the settings kept and put through the suite, with the controls.

Everything is a file under the study's folder, so a study that was stopped goes on, and a larger one starts from a smaller.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.campaign.cell import record_failure
from holdfast.campaign.cells import Campaign, Model, Role, untouched_undefended
from holdfast.campaign.run import cell_jobs, write_plan
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.jobs.local import Job, Outcome, Progress, run_jobs
from holdfast.runs.study.tuning import Settings, Trial, make, run_trial
from holdfast.safeguards.base import Safeguard
from holdfast.testbed.folder import Kind, place, write_domain
from holdfast.testbed.world import Sizes

_BASE_SECONDS, _CELL_SECONDS = 85.0, 4.5
"""what training a base model and one attack take on one core, about"""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: stages, and what of the last one is tuned."""

    label: str
    """the row's name, and its model folder's"""
    stages: tuple[str, ...]
    """safeguard presets, in order"""
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """field of the last stage -> values that a trial draws from; empty: nothing is tuned"""
    shorter: Settings = field(default_factory=dict)
    """settings of the last stage in trials only, to save time"""
    settings: Settings = field(default_factory=dict)
    """settings of the last stage always, in place of the preset's"""
    start: str | None = None
    """label of the method whose model this one starts from and takes for the original; None: the undefended model"""
    role: Role = "defended"
    """`reference` for the shallow safeguard that attacks must break"""
    size: float = 30.0
    """seconds it takes to build on one core, for the estimate"""
    seed: int | None = None
    """of its training; None: the world's"""

    def trial(self, index: int) -> dict[str, Any]:
        """Settings of a trial: the preset's own at first, then draws that depend on the method and the number alone.

        Drawn without replacement from all combinations of `space` but the preset's: no trial is spent on settings already tried.
        """
        if index == 0 or not self.space:
            return {}
        _, preset = self.built({})[-1]
        own = tuple(getattr(preset, name) for name in self.space)
        combinations = [held for held in itertools.product(*self.space.values()) if held != own]
        drawn = random.Random(self.label).sample(combinations, len(combinations))[index - 1]
        return dict(zip(self.space, drawn, strict=True))

    def built(self, settings: Settings) -> tuple[tuple[str, Safeguard], ...]:
        """The stages with settings applied to the last."""
        stages = [(name, pick("holdfast.safeguards", name)) for name in self.stages]
        name, last = stages[-1]
        return (*stages[:-1], (name, replace(last, **{**self.settings, **settings})))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One domain of a study."""

    kind: Kind
    methods: tuple[Method, ...]
    suite: str
    """name of the attacks of the claims, for the report"""
    attacks: tuple[str, ...]
    """attacks of the claims"""
    tuning_attacks: tuple[str, ...]
    """attacks of the trials; none of them is among the claims'"""
    selection: str
    """the evaluation whose questions the trials are judged by"""
    found: Mapping[str, Attack] = field(default_factory=dict)
    """attacks of the claims that are no presets, by their names among `attacks`"""
    details: Mapping[str, Any] = field(default_factory=dict)
    """what the plan of each world's campaign says besides"""

    def __post_init__(self) -> None:
        if shared := set(self.attacks) & set(self.tuning_attacks):
            raise HoldfastError(f"the trials may not see attacks of the claims: {', '.join(sorted(shared))}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Parts, worlds and the number of trials."""

    title: str
    parts: tuple[Part, ...]
    tuning_world: int
    worlds: tuple[int, ...]
    trials: int
    seeds: tuple[int, ...] = (0,)
    """attack seeds of the claims"""
    sizes: Sizes = Sizes()

    def __post_init__(self) -> None:
        if self.tuning_world in self.worlds:
            raise HoldfastError(f"world {self.tuning_world} is the tuning world and cannot be claimed on")

    def run(
        self,
        out: Path,
        workers: int,
        command: str = "",
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        """Run what is not there yet. A method that cannot be built has no cells, and the rest goes on.

        Returns:
            How every job ended.
        """
        for part in self.parts:
            for world in (self.tuning_world, *self.worlds):
                write_domain(self.folder(out, part, world) / "testbed", world, self.sizes, part.kind)
        outcomes = run_jobs(
            [job for part in self.parts for job in self._trial_jobs(out, part)], workers, on_progress=on_progress
        )
        failures = [outcome for outcome in outcomes.values() if outcome.error is not None]
        if failures:
            raise HoldfastError(f"{failures[0].job.name} failed: {failures[0].error}")
        jobs, plans = list[Job](), dict[Path, Campaign]()
        for part in self.parts:
            for world in self.worlds:
                folder = self.folder(out, part, world)
                plans[folder] = self.campaign(out, part, world)
                jobs += self._claim_jobs(out, part, world, plans[folder])
        claims = run_jobs(sorted(jobs, key=lambda job: job.call != make), workers, on_progress=on_progress)
        for (part, world), (folder, campaign) in zip(
            ((part, world) for part in self.parts for world in self.worlds), plans.items(), strict=True
        ):
            self._write_plan(folder, campaign, part, world, claims, command)
        return [*outcomes.values(), *claims.values()]

    @property
    def core_seconds(self) -> float:
        """About how long it takes on one core, from nothing."""
        total = 0.0
        for part in self.parts:
            tuned = [method for method in part.methods if method.space]
            trial = sum(_BASE_SECONDS / 2 if method.shorter else method.size for method in tuned)
            total += self.trials * (trial + len(tuned) * _CELL_SECONDS * len(part.tuning_attacks))
            cells = (len(part.methods) + 2) * (len(part.attacks) * len(self.seeds) + 1)
            built = sum(method.size for method in part.methods)
            total += _BASE_SECONDS * bool(tuned)
            total += len(self.worlds) * (1.45 * _BASE_SECONDS + built + cells * _CELL_SECONDS)
        return total

    def folder(self, out: Path, part: Part, world: int) -> Path:
        return out / f"{part.kind}-{world}"

    def first_folder(self, out: Path) -> Path:
        """The first of the campaigns that it is made of, which a report can be made from."""
        return self.folder(out, self.parts[0], self.worlds[0])

    def campaign(self, out: Path, part: Part, world: int) -> Campaign:
        """The cells of one domain on one claim world; the models lie in its folder, or will."""
        folder = self.folder(out, part, world)
        return Campaign(
            models=(
                Model(label="undefended", path=str(folder / "testbed" / "model"), role="undefended"),
                *(
                    Model(label=method.label, path=str(folder / "models" / method.label), role=method.role)
                    for method in part.methods
                ),
                Model(label="never-exposed", path=str(folder / "testbed" / "never_exposed"), role="never-exposed"),
            ),
            domain=folder / "testbed",
            attacks=tuple((name, part.found.get(name) or pick("holdfast.attacks", name)) for name in part.attacks),
            seeds=self.seeds,
        )

    def chosen(self, out: Path, part: Part, method: Method) -> Trial:
        """The best trial of a method: least hazard before and after the tuning attacks, among those that keep ability."""
        trials = [Trial.read(self._trial_file(out, part, method, i)) for i in range(self._trials_of(method))]
        return min(trials, key=lambda trial: trial.rank)

    def _trials_of(self, method: Method) -> int:
        return self.trials if method.space else 0

    def _trial_file(self, out: Path, part: Part, method: Method, index: int) -> Path:
        return out / "trials" / part.kind / f"{method.label}-{index}.json"

    def testbed_jobs(self, out: Path, part: Part, world: int, models: Sequence[str]) -> list[Job]:
        """Jobs that train the base models of a world."""
        arguments = {
            "folder": self.folder(out, part, world) / "testbed",
            "seed": world,
            "sizes": self.sizes,
            "kind": part.kind,
        }
        sizes = {"model": _BASE_SECONDS, "never_exposed": 0.45 * _BASE_SECONDS}
        return [
            Job(
                name=f"{part.kind} world {world}: train {which}",
                call=place,
                arguments={**arguments, "which": which},
                size=sizes[which],
            )
            for which in models
        ]

    def making(self, out: Path, part: Part, world: int, method: Method, settings: Settings) -> Job:
        """The job that builds a method's model in a world's folder."""
        folder = self.folder(out, part, world)
        origin = method.start or "model"
        return Job(
            name=f"{part.kind} world {world}: {method.label}",
            call=make,
            arguments={
                "folder": folder,
                "label": method.label,
                "stages": method.built(settings),
                "start": folder / "models" / method.start if method.start else folder / "testbed" / "model",
                "seed": world if method.seed is None else method.seed,
            },
            after=(f"{part.kind} world {world}: {origin if method.start else 'train model'}",),
            size=method.size,
        )

    def _trial_jobs(self, out: Path, part: Part) -> list[Job]:
        tuned = [method for method in part.methods if method.space]
        if not tuned:
            return []
        starts = {method.start for method in tuned if method.start}
        jobs = self.testbed_jobs(out, part, self.tuning_world, ["model"])
        jobs += [self.making(out, part, self.tuning_world, m, {}) for m in part.methods if m.label in starts]
        for method in tuned:
            for index in range(self.trials):
                folder = self.folder(out, part, self.tuning_world)
                settings = method.trial(index)
                making = self.making(out, part, self.tuning_world, method, {**settings, **method.shorter})
                jobs.append(
                    Job(
                        name=f"{making.name}, trial {index}",
                        call=run_trial,
                        arguments={
                            "file": self._trial_file(out, part, method, index),
                            "domain": folder / "testbed",
                            "start": making.arguments["start"],
                            "stages": making.arguments["stages"],
                            "settings": settings,
                            "attacks": part.tuning_attacks,
                            "selection": part.selection,
                            "seed": self.tuning_world,
                        },
                        after=making.after,
                        size=method.size + _CELL_SECONDS * len(part.tuning_attacks),
                    )
                )
        return jobs

    def _claim_jobs(self, out: Path, part: Part, world: int, campaign: Campaign) -> list[Job]:
        folder = self.folder(out, part, world)
        making = [
            self.making(out, part, world, m, self.chosen(out, part, m).settings if m.space else {})
            for m in part.methods
        ]
        prefix = f"{part.kind} world {world}: "
        after = {method.label: (prefix + method.label,) for method in part.methods}
        after |= {"undefended": (prefix + "train model",), "never-exposed": (prefix + "train never_exposed",)}
        cells = list(campaign.cells())
        attacking = [
            replace(job, name=prefix + job.name, after=tuple(_prefixed(prefix, name) for name in job.after))
            for job in cell_jobs(cells, folder, untouched_undefended(cells), after)
        ]
        # Cells are sized in steps; here everything is in seconds.
        attacking = [replace(job, size=_CELL_SECONDS) for job in attacking]
        return [*self.testbed_jobs(out, part, world, ["model", "never_exposed"]), *making, *attacking]

    def _write_plan(
        self, folder: Path, campaign: Campaign, part: Part, world: int, outcomes: Mapping[str, Outcome], command: str
    ) -> None:
        prefix = f"{part.kind} world {world}: "
        failed = {
            method.label: outcome.error
            for method in part.methods
            if (outcome := outcomes[prefix + method.label]).error is not None
        }
        campaign = replace(campaign, models=tuple(m for m in campaign.models if m.label not in failed))
        cells = list(campaign.cells())
        for cell in cells:
            outcome = outcomes[prefix + cell.name]
            if outcome.error is not None:
                record_failure(cell, folder, outcome.error, outcome.seconds)
        tuned = {
            method.label: self.chosen(folder.parent, part, method).settings for method in part.methods if method.space
        }
        write_plan(
            campaign,
            folder,
            [cell.id for cell in cells],
            title=f"{self.title}: {part.kind}, world {world}",
            suite=part.suite,
            command=command,
            not_built=failed,
            tuned=tuned,
            **part.details,
        )


def _prefixed(prefix: str, name: str) -> str:
    return name if name.startswith(prefix) else prefix + name
