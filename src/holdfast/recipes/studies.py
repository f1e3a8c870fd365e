"""The studies by name, and the run that ends in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.core.domain import nearest
from holdfast.core.files import write_text
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Outcome, Progress
from holdfast.recipes import ablations, claims, claims_table, demo, family_table, method_table, paper_tables, red_team
from holdfast.recipes.family_plot import draw_families
from holdfast.recipes.method_plot import draw_study
from holdfast.runs.standing import working_in
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Study

STUDIES: Mapping[str, Callable[[], Study | RedTeam]] = {
    "paper-tables": paper_tables.short,
    "paper-tables-full": paper_tables.full,
    "ablations": ablations.study,
    "claims": claims.study,
    "red-team": red_team.short,
    "red-team-full": red_team.full,
}
"""A larger study of one kind goes on from a smaller one's folder."""


def pick_study(name: str) -> Study | RedTeam:
    """The study of that name.

    Raises:
        HoldfastError: there is none.
    """
    if name not in STUDIES:
        raise HoldfastError(f"there is no study {name!r}; {nearest(name, STUDIES)}")
    return STUDIES[name]()


def run_demo(
    out: Path, seed: int, workers: int, command: str, on_progress: Callable[[Progress], None] = lambda progress: None
) -> list[Outcome]:
    """Run the demo of a seed in a folder, or what is missing of it; return how the jobs ended.

    Raises:
        HoldfastError: the folder holds something else, another process works in it, or a model could not be made.
    """
    study = demo.study(seed)
    with working_in(out, "demo", {"seed": seed}, command, on_progress) as work:
        outcomes = study.run(out, workers, command, work.progress)
    for outcome in outcomes:
        if outcome.error is not None and "cell" not in outcome.job.arguments:
            raise HoldfastError(f"{outcome.job.name} failed: {outcome.error}")
    return outcomes


def run_study(
    name: str,
    study: Study | RedTeam,
    out: Path,
    workers: int,
    command: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Run what is not there yet and write `tables.md`, its pictures and `tables.json`; return how the jobs ended.

    Raises:
        HoldfastError: the folder holds something else, another process works in it, or a search could not be made.
    """
    family = name.removesuffix("-full")
    with working_in(out, f"study {family}", {}, command, on_progress) as work:
        outcomes = study.run(out, workers, command, work.progress)
        if isinstance(study, RedTeam):
            text, table = _families(study, family, out, work.seconds, workers)
        elif family == "claims":
            claimed = claims_table.read_claims(study, out)
            text, table = claims_table.markdown(study, claimed, work.seconds, workers), claims_table.as_json(claimed)
        else:
            text, table = _methods(study, family, out, work.seconds, workers)
        write_text(out / "tables.md", f"# {study.title}\n\nMade by `{command}`.\n\n{text}")
        write_text(out / "tables.json", json.dumps(table, indent=2) + "\n")
    return outcomes


def _methods(study: Study, family: str, out: Path, seconds: float, workers: int) -> tuple[str, Any]:
    """Safeguards beside each other: the tables as text and as JSON, the pictures beside them."""
    tables = method_table.read_study(study, out)
    left = {} if family == "ablations" else paper_tables.not_run(study)
    for part in study.parts:
        draw_study(tables[part.kind], out / f"{part.kind}.svg", part.kind)
    return method_table.markdown(study, tables, left, seconds, workers), method_table.as_json(tables)


def _families(team: RedTeam, family: str, out: Path, seconds: float, workers: int) -> tuple[str, Any]:
    """Families of attack by model: the table as text and as JSON, the picture beside it."""
    study = team.study(out)
    rows = family_table.read_families(study, team.found(out), out)
    picture = f"{family}.svg"
    draw_families(rows, family_table.models_of(study), out / picture)
    text = family_table.markdown(study, rows, seconds, workers, team.trials, picture)
    return text, family_table.as_json(rows)
