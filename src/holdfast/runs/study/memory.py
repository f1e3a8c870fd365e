"""What memory a worker of a study takes, planned before the models of the study are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.attacks.base import Attack
from holdfast.attacks.space import collect_families
from holdfast.core.model_size import count_weights
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.memory import WorkerMemory, plan_of_probe, plan_of_stages, plan_of_worker
from holdfast.runs.stages import Recipe
from holdfast.runs.study.method import Method
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Part, Study
from holdfast.runs.study.world import World
from holdfast.testbed.folder import write_untrained


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is trained and attacked on the models of one world."""

    world: World
    methods: tuple[Method, ...]
    attacks: tuple[tuple[str, Attack], ...]


def memory_of_study(
    study: Study | RedTeam, on_step: Callable[[int, int], None] = lambda done, total: None
) -> WorkerMemory:
    """Plan every training and every attack of a study, on models of the shape that the study's will have.

    An invented world's models are planned on untrained ones. A released model is asked for its facts first, whose answers the
    cache keeps for the study. Nothing is written to the study's folder, which another run may hold. Settings that a trial draws
    are planned as the preset has them. The training of the testbed's own models is left out: it takes less than an attack.

    Args:
        study: whose jobs a worker runs.
        on_step: called with parts planned and parts in all.

    Raises:
        HoldfastError: the memory of none of the attacks can be foretold.
    """
    with tempfile.TemporaryDirectory() as temporary:
        works = [*_works(study, Path(temporary))]
        found = list[WorkerMemory]()
        for done, work in enumerate(works, 1):
            world = work.world
            if world.kind == "real" or world.kind == "real-refusal":
                world.write()
            else:
                write_untrained(world.testbed, world.seed, world.sizes, world.kind)
            found.append(_plan(work))
            on_step(done, len(works))
    return WorkerMemory(
        largest=max((worker.largest for worker in found), key=lambda plan: plan.peak),
        host=max(worker.host for worker in found),
        measuring=max(worker.measuring for worker in found),
        unknown=tuple(dict.fromkeys(name for worker in found for name in worker.unknown)),
    )


def _works(study: Study | RedTeam, temporary: Path) -> Iterator[_Work]:
    if isinstance(study, RedTeam):
        families = collect_families()
        searched = tuple((name, families[name].largest()) for name in (*study.families, *study.held_out))
        world = World(
            folder=temporary, seed=study.tuning_world, kind=study.part.kind, sizes=study.sizes, options=study.options
        )
        yield _Work(world=world, methods=study.methods, attacks=searched)
        return
    for place, part in enumerate(study.parts):
        world = replace(study.world(temporary, part, study.worlds[0]), folder=temporary / str(place))
        yield _Work(world=world, methods=part.methods, attacks=_attacks(part))


def _attacks(part: Part) -> tuple[tuple[str, Attack], ...]:
    names = dict.fromkeys((*part.attacks, *part.tuning_attacks))
    return tuple((name, part.found.get(name) or pick("holdfast.attacks", name)) for name in names)


def _plan(work: _Work) -> WorkerMemory:
    bed, options = work.world.testbed, work.world.options
    model = Checkpoint(str(bed / "model"))
    plans = [plan_of_probe("benign-learning", count_weights(model.folder), options.device)]
    unknown = list[str]()
    for method in work.methods:
        try:
            recipe = Recipe(model=model, base=model, domain=bed, stages=method.built({}), seed=0, options=options)
            largest = max(plan_of_stages(recipe), key=lambda plan: plan.peak)
            plans.append(replace(largest, label=method.label))
        except HoldfastError:
            unknown.append(method.label)
    worker = plan_of_worker(work.attacks, model.path, bed, model.path, options, plans, lambda done, total: None)
    return replace(worker, unknown=(*unknown, *worker.unknown))
