"""The red team's table: every family of attack on a shallow safeguard, on TAR, and on a model that never had the hazard.

1. On a world kept for it, a search looks in every family for the settings that recover most from each target, asked on the
   selection questions.
2. On worlds that nobody has looked at, the settings found on any target are turned on every model, asked on the claim questions.

A family that is held out is met by neither a search nor an adversary in training: it runs as its preset stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from holdfast.attacks.base import Attack
from holdfast.attacks.space import collect_families
from holdfast.core.options import Options
from holdfast.core.presets import describe
from holdfast.core.types import HoldfastError
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Job, Outcome, Progress
from holdfast.jobs.run import run_jobs
from holdfast.runs.search.confirmation import searched_classes
from holdfast.runs.search.search import best_of, search_family
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.testbed.world import Sizes

_TRIAL_SECONDS = 4.0
"""what a trial takes on one core, about"""


@dataclass(frozen=True, kw_only=True)
class RedTeam:
    """Models, families, and how long the search may be."""

    title: str
    methods: tuple[Method, ...]
    """the safeguards, as their presets stand"""
    targets: tuple[str, ...]
    """labels of those that the search attacks"""
    families: tuple[str, ...]
    """what is searched"""
    trials: int
    """attacks tried in each family on each target"""
    tuning_world: int
    worlds: tuple[int, ...]
    seeds: tuple[int, ...]
    """attack seeds of the claims"""
    held_out: tuple[str, ...] = ()
    """families that are met by no search and no adversary"""
    sizes: Sizes = Sizes()
    options: Options = Options()
    """device and precision of models, searches and attacks"""

    def __post_init__(self) -> None:
        families = collect_families()
        if both := set(self.held_out) & set(self.families):
            raise HoldfastError(f"a family that is held out cannot be searched: {', '.join(sorted(both))}")
        for method in self.methods:
            for _, stage in method.built({}):
                for name, trained in product(self.held_out, stage.trains_against()):
                    if trained.is_family_of(families[name].attack):
                        raise HoldfastError(
                            f"{name} is held out, and {method.label} trains against it; hold out another"
                        )

    @property
    def core_seconds(self) -> float:
        """The estimated time on one core, from nothing."""
        searches = len(self.targets) * len(self.families) * self.trials * _TRIAL_SECONDS
        built = sum(method.size for method in self.methods if method.label in self.targets)
        return searches + built + 85.0 + self._study(self._guessed()).core_seconds

    def first_folder(self, out: Path) -> Path:
        """The folder of the first campaign, which a report can be made from."""
        return self._study({}).first_folder(out)

    @property
    def part(self) -> Part:
        """The domain and the models, without attacks yet."""
        return Part(
            kind="knowledge",
            methods=self.methods,
            suite="found by search",
            attacks=(),
        )

    def run(
        self, out: Path, workers: Workers, command: str, on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> list[Outcome]:
        """Search, then attack; finished jobs are not run again.

        Raises:
            HoldfastError: a target or a search could not be made.
        """
        world = self._study({}).world(out, self.part, self.tuning_world)
        world.write(on_progress)
        training = world.training()["model"]
        targets = {method.label: method for method in self.methods if method.label in self.targets}
        making = world.making(tuple(targets.values()), training, {}, {})
        searching = [
            Job(
                name=f"search {family} on {target}",
                call=search_family,
                arguments={
                    "model": str(world.model_of(targets[target])),
                    "base": str(world.testbed / "model"),
                    "domain": world.testbed,
                    "family": family,
                    "trials": self.trials,
                    "out": self._searched(out, family, target),
                    "seed": self.tuning_world,
                    "options": self.options,
                },
                after=(making[target],),
                size=self.trials * _TRIAL_SECONDS,
            )
            for target in self.targets
            for family in self.families
        ]
        outcomes = list(run_jobs([*making.values(), *searching], workers, on_progress=on_progress).values())
        if failed := [outcome for outcome in outcomes if outcome.error is not None]:
            raise HoldfastError(f"{failed[0].job.name} failed: {failed[0].error}")
        return [*outcomes, *self._study(self.found(out)).run(out, workers, command, on_progress)]

    def found(self, out: Path) -> dict[str, dict[str, Attack]]:
        """The attacks of the claims by family and name: the best of each search, and held-out families' presets.

        An attack that several searches chose is one attack, which is named after their targets.
        """
        attacks: dict[str, dict[str, Attack]] = {}
        for family in self.families:
            best = {target: best_of(self._searched(out, family, target)) for target in self.targets}
            chosen_on: dict[str, list[str]] = {}
            for target, attack in best.items():
                chosen_on.setdefault(str(describe(attack)), []).append(target)
            attacks[family] = {
                f"{family}-on-{'all' if len(targets) == len(best) else '-and-'.join(targets)}": best[targets[0]]
                for targets in chosen_on.values()
            }
        return {**attacks, **self._held_out()}

    def study(self, out: Path) -> Study:
        """The study of claims, once the searches have ended."""
        return self._study(self.found(out))

    def _study(self, families: Mapping[str, Mapping[str, Attack]]) -> Study:
        attacks = {name: attack for named in families.values() for name, attack in named.items()}
        part = replace(
            self.part,
            attacks=tuple(attacks),
            found=attacks,
            details={
                "searched": searched_classes(self.families),
                "families": {family: list(named) for family, named in families.items()},
            },
        )
        return Study(
            title=self.title,
            parts=(part,),
            tuning_world=self.tuning_world,
            worlds=self.worlds,
            trials=0,
            seeds=self.seeds,
            sizes=self.sizes,
            options=self.options,
        )

    def _guessed(self) -> dict[str, dict[str, Attack]]:
        """The greatest possible number of attacks, for the estimate."""
        families = collect_families()
        return {
            family: {f"{family}-on-{target}": families[family].attack for target in self.targets}
            for family in self.families
        } | self._held_out()

    def _held_out(self) -> dict[str, dict[str, Attack]]:
        return {family: {f"{family}-held-out": collect_families()[family].attack} for family in self.held_out}

    def _searched(self, out: Path, family: str, target: str) -> Path:
        return out / "searches" / f"{family}-on-{target}"
