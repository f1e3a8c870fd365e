"""A study: safeguards tuned alike on one world, then attacked on worlds that nobody has looked at.

1. Trials: each method is built `trials` times on the tuning world, with its preset's settings and with settings drawn from its
   space, and measured on the selection questions before and after the tuning attacks. The best trial's settings are kept.
2. Claims: on every claim world each method is built with the settings kept and put through the suite, with the controls.

All of it is one graph of jobs: a model is attacked as soon as it exists, while the next is still being made. Everything is a file
under the study's folder, so a study that was stopped goes on, and a larger one starts from a smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.attacks.base import Attack
from holdfast.campaign.cells import Campaign, Model
from holdfast.core.domain import nearest
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.core.reading import excerpt
from holdfast.core.types import HoldfastError
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.jobs.run import run_jobs
from holdfast.runs.study.method import Method
from holdfast.runs.study.tuning import Trial, best_trial
from holdfast.runs.study.world import ASKING_SECONDS, BASE_SECONDS, CELL_SECONDS, World
from holdfast.testbed.folder import Kind
from holdfast.testbed.real.folder import RealKind
from holdfast.testbed.world import Sizes


@dataclass(frozen=True, kw_only=True)
class Part:
    """One domain of a study."""

    kind: Kind | RealKind
    methods: tuple[Method, ...]
    suite: str
    """name of the attacks of the claims, for the report"""
    attacks: tuple[str, ...]
    """attacks of the claims"""
    tuning_attacks: tuple[str, ...] = ()
    """attacks of the trials; none of them is among the claims'"""
    selection: str = "hazard_selection"
    """the evaluation whose questions the trials are judged by"""
    found: Mapping[str, Attack] = field(default_factory=dict)
    """attacks of the claims that are no presets, by their names among `attacks`"""
    canonical: str | None = None
    """the attack that the undefended and a destroyed model go through, and no other; None: the undefended model goes through all,
    and no destroyed model is made"""
    dense: bool = False
    """measure hazard between the milestones too, so that the cost of a breach is known closely"""
    milestones: tuple[int, ...] | None = None
    """steps after which models are measured, beside the first and the last; None: each attack's own, log-spaced"""
    probes: bool = True
    """examine the untouched models too, which no column of some tables needs"""
    cell_seconds: float = CELL_SECONDS
    """what an attack takes on one core, about"""
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
    worlds: tuple[int, ...]
    tuning_world: int | None = None
    """where the trials are made; None: nothing is tuned"""
    trials: int = 0
    """of each method that has a space"""
    seeds: tuple[int, ...] = (0,)
    """attack seeds of the claims"""
    sizes: Sizes = Sizes()
    options: Options = Options()
    """precision of models, trials and attacks"""

    def __post_init__(self) -> None:
        if self.tuning_world in self.worlds:
            raise HoldfastError(f"world {self.tuning_world} is the tuning world and cannot be claimed on")

    @property
    def references(self) -> tuple[str, ...]:
        """The labels of the methods that the others are compared with."""
        return tuple(method.label for part in self.parts for method in part.methods if method.role == "reference")

    def only(self, labels: Sequence[str]) -> Study:
        """The study of some methods alone, and of those whose models they start from; the same files serve the whole study.

        Raises:
            HoldfastError: there is no such method.
        """
        known = {method.label for part in self.parts for method in part.methods}
        for label in labels:
            if label not in known:
                raise HoldfastError(f"the study has no method {excerpt(label)}; {nearest(label, known)}")
        parts = []
        for part in self.parts:
            wanted = {
                name for method in part.methods if method.label in labels for name in (method.label, method.start)
            }
            methods = tuple(method for method in part.methods if method.label in wanted)
            parts += [replace(part, methods=methods)] if methods else []
        return replace(self, parts=tuple(parts))

    def run(
        self,
        out: Path,
        workers: Workers,
        command: str = "",
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> list[Outcome]:
        """Run the missing jobs. A method that cannot be built has no cells, and the rest goes on.

        Returns:
            How every job ended.
        """
        jobs, places = list[Job](), list[_Place]()
        for part in self.parts:
            trials, trying = self._trials(out, part, on_progress)
            jobs += [job for tries in trying.values() for job in tries]
            for seed in self.worlds:
                world = self.world(out, part, seed)
                world.write(on_progress)
                training = world.training()
                making = world.making(part.methods, training.get("model"), trials, trying)
                campaign = self.campaign(out, part, seed)
                attacking = world.attacking(campaign, training, making, part.cell_seconds)
                jobs += [*training.values(), *making.values()]
                places.append(_Place(part, world, campaign, making, attacking))
        # What others wait for comes first, and attacks when their model is there.
        outcomes = run_jobs(
            [*jobs, *(job for place in places for job in place.attacking)], workers, on_progress=on_progress
        )
        for place in places:
            tuned = {m.label: self.chosen(out, place.part, m).settings for m in place.part.methods if self._tunes(m)}
            place.world.record(
                place.campaign, place.making, place.attacking, outcomes,
                title=f"{self.title}: {place.part.kind}, world {place.world.seed}" if self._many else self.title,
                suite=place.part.suite, command=command, tuned=tuned, **place.part.details,
            )  # fmt: skip
        return list(outcomes.values())

    @property
    def core_seconds(self) -> float:
        """The estimated time on one core, from nothing."""
        total = 0.0
        for part in self.parts:
            real = self.world(Path(), part, self.worlds[0]).real
            base, model = (ASKING_SECONDS, 0.0) if real else (sum(BASE_SECONDS.values()), BASE_SECONDS["model"])
            tuned = [method for method in part.methods if self._tunes(method)]
            trial = sum(method.size / 3 if method.shorter else method.size for method in tuned)
            total += self.trials * (trial + len(tuned) * part.cell_seconds * len(part.tuning_attacks))
            total += (base if real else model) * bool(tuned)
            models = len(part.methods) + (1 if part.canonical or real else 2)
            cells = models * (len(part.attacks) * len(self.seeds) + 1)
            built = sum(method.size for method in part.methods)
            total += len(self.worlds) * (base + built + cells * part.cell_seconds)
        return total

    @property
    def _many(self) -> bool:
        """Whether there is more than one world to keep apart."""
        return len(self.parts) * len(self.worlds) > 1 or self.tuning_world is not None

    def _tunes(self, method: Method) -> bool:
        return bool(method.space and self.trials)

    def folder(self, out: Path, part: Part, world: int) -> Path:
        """The folder of one world; a study of a single world uses its folder directly."""
        return out / f"{part.kind}-{world}" if self._many else out

    def first_folder(self, out: Path) -> Path:
        """The folder of the first campaign, which a report can be made from."""
        return self.folder(out, self.parts[0], self.worlds[0])

    def world(self, out: Path, part: Part, seed: int) -> World:
        """One world of a part."""
        title = f"{part.kind} world {seed}: " if self._many else ""
        folder = self.folder(out, part, seed)
        return World(folder=folder, seed=seed, kind=part.kind, sizes=self.sizes, title=title, options=self.options)

    def campaign(self, out: Path, part: Part, seed: int) -> Campaign:
        """The cells of one domain on one claim world; the models lie in its folder, or will."""
        world = self.world(out, part, seed)
        undefended = Model(label="undefended", path=str(world.testbed / "model"), role="undefended")
        destroyed = Model(label="destroyed", path=undefended.path, role="destroyed")
        controls = (undefended, destroyed) if part.canonical else ()
        never_exposed = Model(label="never-exposed", path=str(world.testbed / "never_exposed"), role="never-exposed")
        return Campaign(
            models=(
                undefended,
                *(Model(label=m.label, path=str(world.model_of(m)), role=m.role) for m in part.methods),
                *(() if world.real else (never_exposed,)),
                *controls[1:],
            ),
            domain=world.testbed,
            attacks=tuple((name, part.found.get(name) or pick("holdfast.attacks", name)) for name in part.attacks),
            seeds=self.seeds,
            milestones=part.milestones,
            only={model.label: (part.canonical,) for model in controls if part.canonical},
            dense=part.dense,
            probes=part.probes,
            options=self.options,
            base=undefended.path,
        )

    def chosen(self, out: Path, part: Part, method: Method) -> Trial:
        """The best trial of a method: least hazard before and after the tuning attacks, among those that keep ability."""
        return best_trial(self._files(out, part, method))

    def _files(self, out: Path, part: Part, method: Method) -> list[Path]:
        tries = self.trials if self._tunes(method) else 0
        return [out / "trials" / part.kind / f"{method.label}-{index}.json" for index in range(tries)]

    def _trials(
        self, out: Path, part: Part, on_progress: Callable[[Progress], None]
    ) -> tuple[dict[str, list[Path]], dict[str, list[Job]]]:
        """The trials of a part on the tuning world: by label, their files and the jobs that write them."""
        tuned = [method for method in part.methods if self._tunes(method)]
        if not tuned or self.tuning_world is None:
            return {}, {}
        world = self.world(out, part, self.tuning_world)
        world.write(on_progress)
        training = world.training().get("model")
        # Trials of a method that starts from another's model start from that one's preset.
        starts = world.making(part.methods, training, {}, {})
        files = {method.label: self._files(out, part, method) for method in tuned}
        trying = {
            method.label: world.trying(
                method,
                starts[method.start] if method.start else training,
                files[method.label],
                part.tuning_attacks,
                part.selection,
            )
            for method in tuned
        }
        return files, trying


@dataclass(frozen=True)
class _Place:
    """The jobs of a study on one world."""

    part: Part
    world: World
    campaign: Campaign
    making: dict[str, Job]
    attacking: list[Job]
