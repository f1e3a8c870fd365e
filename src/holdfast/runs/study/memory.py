"""What memory a worker of a study takes, planned before the models of the study are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.attacks.base import Attack
from holdfast.attacks.space import collect_families
from holdfast.core.model_size import count_weights
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.graph import Progress
from holdfast.runs.memory import MemoryPlan, WorkerMemory, plan_of_probe, plan_of_stages, plan_of_worker
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
    options: Options


def memory_of_study(
    study: Study | RedTeam,
    out: Path,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> WorkerMemory:
    """Plan every training and every attack of a study, on models of the shape that the study's will have.

    An invented world's models are planned on untrained ones. A released model is asked for its facts first, as the study does it.
    Settings that a trial draws are planned as the preset has them. The training of the testbed's own models is left out: it takes
    less than an attack.

    Args:
        study: whose jobs a worker runs.
        out: the folder of the study, where the facts of a released model are kept.
        on_step: called with parts planned and parts in all.
        on_progress: called while a released model is asked.

    Raises:
        HoldfastError: the memory of none of the attacks can be foretold.
    """
    with tempfile.TemporaryDirectory() as temporary:
        works = [*_works(study, out, Path(temporary))]
        found = list[WorkerMemory]()
        for done, work in enumerate(works, 1):
            world = work.world
            if world.kind == "real" or world.kind == "real-refusal":
                world.write(on_progress)
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


def _works(study: Study | RedTeam, out: Path, temporary: Path) -> Iterator[_Work]:
    if isinstance(study, RedTeam):
        families = collect_families()
        searched = tuple((name, families[name].largest()) for name in (*study.families, *study.held_out))
        world = World(
            folder=temporary, seed=study.tuning_world, kind=study.part.kind, sizes=study.sizes, options=study.options
        )
        yield _Work(world=world, methods=study.methods, attacks=searched, options=study.options)
        return
    for place, part in enumerate(study.parts):
        here = study.world(out, part, study.worlds[0])
        world = here if here.real else replace(here, folder=temporary / str(place))
        yield _Work(world=world, methods=part.methods, attacks=_attacks(part), options=study.options)


def _attacks(part: Part) -> tuple[tuple[str, Attack], ...]:
    names = dict.fromkeys((*part.attacks, *part.tuning_attacks))
    return tuple((name, part.found.get(name) or pick("holdfast.attacks", name)) for name in names)


def _plan(work: _Work) -> WorkerMemory:
    model = Checkpoint(str(work.world.testbed / "model"))
    plans = [plan_of_probe("benign-learning", count_weights(model.folder), work.options.device)]
    unknown = list[str]()
    for method in work.methods:
        try:
            plans.append(_largest(method, model, work))
        except HoldfastError:
            unknown.append(method.label)
    worker = plan_of_worker(
        work.attacks, model.path, work.world.testbed, model.path, work.options, plans, lambda done, total: None
    )
    return replace(worker, unknown=(*unknown, *worker.unknown))


def _largest(method: Method, model: Checkpoint, work: _Work) -> MemoryPlan:
    """The plan of the stage that takes most, under the method's name."""
    recipe = Recipe(
        model=model, base=model, domain=work.world.testbed, stages=method.built({}), seed=0, options=work.options
    )
    return replace(max(plan_of_stages(recipe), key=lambda plan: plan.peak), label=method.label)
