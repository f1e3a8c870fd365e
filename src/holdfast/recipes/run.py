"""Run a recipe by name: the demo, or a study that ends in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal

from holdfast.core.domain import nearest
from holdfast.core.files import write_text
from holdfast.core.options import Options
from holdfast.core.outside import outside
from holdfast.core.presets import merged
from holdfast.core.reading import excerpt
from holdfast.core.types import HoldfastError
from holdfast.jobs.executor import Workers, count
from holdfast.jobs.graph import Outcome, Progress
from holdfast.recipes import demo, real
from holdfast.recipes.names import STUDIES
from holdfast.recipes.pages import Described, claims_page, contender_page, families_page, methods_page, steps_page
from holdfast.runs.standing import working_in
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Study

DemoKind = Literal["knowledge", "real"]


def pick_study(name: str, only: Sequence[str] = ()) -> Study | RedTeam:
    """The study of that name, holdfast's own or of a plug-in from outside.

    Args:
        name: of the study.
        only: labels of methods, for those rows of a table of safeguards alone; none: the whole study.

    Raises:
        HoldfastError: there is none, two modules have a study of the same name, or the study has no such methods.
    """
    known = merged(
        [
            ("holdfast.recipes", {name: partial(_made, place) for name, place in STUDIES.items()}),
            *((one.home, one.listed("STUDIES")) for one in outside()),
        ],
        "study",
    )
    if name not in known:
        raise HoldfastError(f"there is no study {excerpt(name)}; {nearest(name, known)}")
    study: Study | RedTeam = known[name]()
    if not isinstance(study, Study | RedTeam):
        raise HoldfastError(f"the study {name} is no Study or RedTeam; mend the function that makes the study")
    if not only:
        return study
    kind = _kind(name)
    if isinstance(study, RedTeam) or kind == "claims":
        raise HoldfastError(
            f"--only chooses rows of a table of safeguards, and {name} ends in no such table; leave --only out"
        )
    return study.only((*only, *study.references) if kind in _ALONG else only)


_ALONG = ("real", "real-refusals")
"""Studies whose page shows every row along an attack and minus the reference, which is made too."""

_CONTENDERS = (
    "low-rank",
    "refusals",
    "reteach",
    "reteach-wide",
    "reteach-text",
    "reteach-mlp-wide",
    "reteach-blank",
    "reteach-blank-wide",
)
"""Studies whose page holds the last of their safeguards against the others and the never-exposed model."""


def _kind(name: str) -> str:
    """The smallest study that another goes on from: both work in one folder."""
    return name.removesuffix("-full").removesuffix("-long")


def _made(place: str) -> Study | RedTeam:
    """The study that a function of this room makes; its module is loaded now."""
    module, _, function = place.partition(".")
    study: Study | RedTeam = getattr(import_module(f"holdfast.recipes.{module}"), function)()
    return study


def run_demo(
    out: Path,
    seed: int,
    workers: Workers,
    command: str,
    kind: DemoKind,
    options: Options,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Run the missing jobs of a seed's demo in a folder; return how the jobs ended.

    Args:
        out: the folder.
        seed: of the world, or of the split of real facts.
        workers: processes at once.
        command: what the user typed, for the report.
        kind: the invented world, or real facts and a released model.
        options: precision and device.
        on_progress: called several times a second.

    Raises:
        HoldfastError: the folder holds something else, another process works in it, or a model could not be made.
    """
    study = real.demo(seed, options) if kind == "real" else demo.study(seed, options)
    # What a folder of the invented world holds was noted before there were others.
    settings = {"kind": kind} if kind == "real" else {}
    with working_in(out, "demo", {"seed": seed, **settings}, command, on_progress) as work:
        outcomes = study.run(out, workers, command, work.progress)
    for outcome in outcomes:
        if outcome.error is not None and "cell" not in outcome.job.arguments:
            raise HoldfastError(f"{outcome.job.name} failed: {outcome.error}")
    return outcomes


def run_study(
    name: str,
    study: Study | RedTeam,
    out: Path,
    workers: Workers,
    command: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Run the missing jobs and write `tables.md`, its pictures and `tables.json`; return how the jobs ended.

    Raises:
        HoldfastError: the folder holds something else, another process works in it, or a search could not be made.
    """
    kind = _kind(name)
    with working_in(out, f"study {kind}", {}, command, on_progress) as work:
        outcomes = study.run(out, workers, command, work.progress)
        described = Described(title=study.title, command=command, seconds=work.seconds, workers=count(workers))
        if isinstance(study, RedTeam):
            text, table = families_page(study, kind, out, described)
        elif kind == "claims":
            text, table = claims_page(study, out, described)
        elif kind in _CONTENDERS:
            text, table = contender_page(study, kind, out, described)
        elif kind in _ALONG:
            text, table = steps_page(study, kind, out, described)
        else:
            text, table = methods_page(study, kind, out, described)
        write_text(out / "tables.md", text)
        write_text(out / "tables.json", json.dumps(table, indent=2) + "\n")
    return outcomes
