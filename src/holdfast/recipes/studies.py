"""The studies by name, and the run that ends in a table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.core.domain import nearest
from holdfast.core.files import claim_output, write_text
from holdfast.core.types import HoldfastError
from holdfast.jobs.local import Outcome, Progress
from holdfast.recipes import ablations, claims, claims_table, family_table, method_table, paper_tables
from holdfast.recipes import red_team as red_teams
from holdfast.recipes.family_plot import draw_families
from holdfast.recipes.method_plot import draw_study
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Study

STUDIES: Mapping[str, Callable[[], Study | RedTeam]] = {
    "paper-tables": paper_tables.short,
    "paper-tables-full": paper_tables.full,
    "ablations": ablations.study,
    "claims": claims.study,
    "red-team": red_teams.short,
    "red-team-full": red_teams.full,
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


def run_study(
    name: str, study: Study | RedTeam, out: Path, workers: int, command: str, on_progress: Callable[[Progress], None]
) -> list[Outcome]:
    """Run what is not there yet and write `tables.md`, its pictures and `tables.json`; return how the jobs ended.

    Raises:
        HoldfastError: `out` holds something else, or a trial or a testbed could not be made.
    """
    marker = out / "study.json"
    family = name.removesuffix("-full")
    if not marker.is_file():
        claim_output(out)
    held, seconds = _read(marker) if marker.is_file() else (family, 0.0)
    if held != family:
        raise HoldfastError(f"{out} holds the study {held}; give another --out for {name}")
    started = kept = time.monotonic()

    def keep_time() -> float:
        spent = seconds + time.monotonic() - started
        write_text(marker, json.dumps({"study": family, "seconds": spent}) + "\n")
        return spent

    def progress(now: Progress) -> None:
        nonlocal kept
        if time.monotonic() - kept > 10:  # a run that is killed has cost its time too
            keep_time()
            kept = time.monotonic()
        on_progress(now)

    keep_time()
    outcomes = study.run(out, workers, command, progress)
    seconds = keep_time()
    if isinstance(study, RedTeam):
        text, table = _families(study, family, out, seconds, workers)
    elif family == "claims":
        claimed = claims_table.read_claims(study, out)
        text, table = claims_table.markdown(study, claimed, seconds, workers), claims_table.as_json(claimed)
    else:
        text, table = _methods(study, family, out, seconds, workers)
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


def _families(red_team: RedTeam, family: str, out: Path, seconds: float, workers: int) -> tuple[str, Any]:
    """Families of attack by model: the table as text and as JSON, the picture beside it."""
    study = red_team.study(out)
    rows = family_table.read_families(study, red_team.found(out), out)
    picture = f"{family}.svg"
    draw_families(rows, family_table.models_of(study), out / picture)
    text = family_table.markdown(study, rows, seconds, workers, red_team.trials, picture)
    return text, family_table.as_json(rows)


def _read(marker: Path) -> tuple[str, float]:
    """The study that a folder holds and the seconds spent on it so far."""
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
        return str(held["study"]), float(held["seconds"])
    except (ValueError, TypeError, KeyError) as error:
        raise HoldfastError(f"{marker} is damaged; remove it with its folder, or give another --out") from error
