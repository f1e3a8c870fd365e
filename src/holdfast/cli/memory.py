"""What a command does about memory before it loads a model: `--memory`, `--plan`, and a look at models that are large."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from holdfast.cli.terminal import fail, say
from holdfast.core.processes import started_by_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from holdfast.campaign.cells import Campaign
    from holdfast.cli import documents
    from holdfast.core.options import Options
    from holdfast.runs.knobs import Choice
    from holdfast.runs.memory import MemoryPlan, WorkerMemory
    from holdfast.runs.search.search import Search
    from holdfast.runs.study.red_team import RedTeam
    from holdfast.runs.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A command whose memory can be predicted."""

    verb: str
    model: str
    plugins: Sequence[Any]
    plan: Callable[[Options], Sequence[MemoryPlan]]
    """the memory of its stages, when it is run with these options"""
    choice: Choice
    """the rows at once that were chosen for the same run before"""


def settle_memory(
    console: Console, command: Planned, options: Options, limit: str | None, only_plan: bool
) -> tuple[Options, documents.Memory | None]:
    """The options that the command goes on with and, where it should only be planned, the plan.

    Args:
        console: for people.
        command: what is run.
        options: as the user gave them.
        limit: of `--memory`: "auto" or a size; None: no knob is turned.
        only_plan: whether only the plan is wanted.

    Raises:
        HoldfastError: nothing fits, or the memory cannot be predicted.
    """
    if limit is not None:
        options, plans, sentence, knobs = _turned(command, options, limit)
        say(console, sentence)
        if not only_plan:
            command.choice.keep(options.micro_batch)
        return options, _shown(console, plans, options.device, sentence, knobs) if only_plan else None
    if only_plan:
        plans = command.plan(options)
        document = _shown(console, plans, options.device, _fits(plans, options.device), ())
        say(console, document.sentence)
        return options, document
    _check(command, options)
    return options, None


def memory_of_worker(console: Console, campaign: Campaign) -> int:
    """Foretell the memory of the host that a worker of a cluster needs, in bytes, and say what takes that much.

    Raises:
        HoldfastError: the memory of none of the attacks can be foretold.
    """
    from holdfast.runs.memory import memory_of_worker as foretold

    return _asked(console, partial(foretold, campaign))


def memory_of_search(console: Console, search: Search) -> int:
    """The same of a worker that runs the trials of a search."""
    from holdfast.runs.memory import memory_of_search as foretold

    return _asked(console, partial(foretold, search))


def memory_of_study(console: Console, study: Study | RedTeam) -> int:
    """The same of a worker that trains and attacks the models of a study; a released model is asked for its facts first."""
    from holdfast.runs.study.memory import memory_of_study as foretold

    return _asked(console, partial(foretold, study))


def _asked(console: Console, foretell: Callable[[Callable[[int, int], None]], WorkerMemory]) -> int:
    from holdfast.cli.display import show_steps
    from holdfast.report.words.memory import worker_sentence
    from holdfast.runs.knobs import with_spare

    with show_steps(console, "foretelling memory") as on_step:
        worker = foretell(on_step)
    asked, on_device = with_spare(worker.on_host), with_spare(worker.on_device)
    say(console, worker_sentence(asked, on_device, worker.largest.label, worker.measuring, worker.unknown))
    return asked


def _turned(
    command: Planned, options: Options, limit: str
) -> tuple[Options, Sequence[MemoryPlan], str, tuple[str, ...]]:
    from holdfast.report.words.memory import does_not_fit, turned_sentence
    from holdfast.runs.knobs import lean_instead, most_rows, needed, room_on, turn

    if started_by_torchrun():
        fail("--memory plans for a model on one device; leave it out under torchrun, which splits the model")
    room = room_on(options.device, limit)
    turned = turn(command.plan, options, most_rows(command.plugins), room, command.choice.rows)
    after = needed(turned.plans)
    if not room.holds(turned.plans):
        lean = lean_instead(command.plan, turned, room)
        here = room.here is not None and after > room.here
        need, given = (after, room.here) if here else (max(plan.on_host for plan in turned.plans), room.host)
        fail(does_not_fit(options.device, need, given or 0, turned.knobs, lean, command.verb, on_host=not here))
    before = needed(command.plan(options)) if turned.knobs else after
    sentence = turned_sentence(options.device, after, room.here, before, turned.knobs)
    return turned.options, turned.plans, sentence, turned.knobs


def _check(command: Planned, options: Options) -> None:
    """End a command that would run out of memory, where its model is large for its device."""
    from holdfast.report.words.memory import too_large_sentence
    from holdfast.runs.knobs import too_large

    if not started_by_torchrun() and (found := too_large(command.plan, options, command.model)):
        fail(too_large_sentence(options.device, *found))


def _fits(plans: Sequence[MemoryPlan], device: str) -> str:
    from holdfast.report.words.memory import fits_sentence
    from holdfast.runs.memory import PROCESS, free

    room = free(device)
    # What this process has already is no longer free.
    held = 0 if plans[0].device else plans[0].host.get(PROCESS, 0)
    return fits_sentence(max(plan.peak for plan in plans), None if room is None else room + held, device)


def _shown(
    console: Console, plans: Sequence[MemoryPlan], device: str, sentence: str, knobs: tuple[str, ...]
) -> documents.Memory:
    """Print the memory that each stage takes, by part."""
    from holdfast.cli import documents
    from holdfast.cli.say import print_table
    from holdfast.report.words.memory import memory_table
    from holdfast.runs.memory import free

    for plan in plans:
        print_table(console, memory_table(plan.label, plan.device, plan.host))
    return documents.Memory(
        device=device,
        free=free(device),
        sentence=sentence,
        turned=list(knobs),
        stages=[
            documents.MemoryLine(preset=plan.label, device=dict(plan.device), host=dict(plan.host)) for plan in plans
        ],
    )
