"""The studies by name, and the run that ends in a table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.attacks.space import collect_families
from holdfast.core.domain import nearest
from holdfast.core.files import claim_output, write_text
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.local import Outcome, Progress
from holdfast.recipes import ablations, claims, paper_tables
from holdfast.recipes import red_team as red_teams
from holdfast.report.studies import claims as claim_tables
from holdfast.report.studies import families, methods
from holdfast.report.studies import study as report
from holdfast.report.studies.family_plot import draw_families
from holdfast.report.studies.method_plot import draw_methods
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Method, Part, Study

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
    described = Described(title=study.title, command=command, seconds=seconds, workers=workers)
    if isinstance(study, RedTeam):
        text, table = _families(study, family, out, described)
    elif family == "claims":
        text, table = _claims(study, out, described)
    else:
        text, table = _methods(study, family, out, described)
    write_text(out / "tables.md", text)
    write_text(out / "tables.json", json.dumps(table, indent=2) + "\n")
    return outcomes


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a report says of the run of a study."""

    title: str
    command: str
    seconds: float
    workers: int

    def study(self, study: Study, out: Path, trials: int, not_run: Mapping[str, Sequence[str]]) -> report.Study:
        """The study in the values that its report is made from."""
        return report.Study(
            title=self.title,
            command=self.command,
            parts=tuple(_part(study, out, part, not_run.get(part.kind, ())) for part in study.parts),
            tuning_world=study.tuning_world,
            trials=trials,
            seeds=study.seeds,
            seconds=self.seconds,
            workers=self.workers,
        )


def _part(study: Study, out: Path, part: Part, not_run: Sequence[str]) -> report.Part:
    safeguards = (
        report.Method(
            label=method.label,
            role=method.role,
            stages=method.stages,
            settings=study.chosen(out, part, method).settings if method.space else {},
            costs=_costs(study, out, part, method),
        )
        for method in part.methods
    )
    undefended, clean = (report.Method(label=label, role=label) for label in ("undefended", "never-exposed"))
    return report.Part(
        kind=part.kind,
        suite=part.suite,
        attacks=len(part.attacks),
        methods=(undefended, *safeguards, clean),
        campaigns={world: study.folder(out, part, world) for world in study.worlds},
        tuning_attacks=part.tuning_attacks,
        not_run=tuple(not_run),
    )


def _costs(study: Study, out: Path, part: Part, method: Method) -> dict[int, float]:
    """Seconds of the method's stages over seconds of pretraining, on the worlds where it could be built."""
    costs = {}
    for world in study.worlds:
        folder = study.folder(out, part, world)
        if (folder / "models" / method.label).is_dir():
            stages = Checkpoint(str(folder / "models" / method.label)).card["stages"][-len(method.stages) :]
            pretraining = Checkpoint(str(folder / "testbed" / "model")).card["seconds"]
            costs[world] = float(sum(stage["seconds"] for stage in stages) / pretraining)
    return costs


def _methods(study: Study, family: str, out: Path, described: Described) -> tuple[str, Any]:
    """Safeguards beside each other: the page as text, the figures as JSON, the pictures beside them."""
    values = described.study(study, out, study.trials, {} if family == "ablations" else paper_tables.not_run(study))
    tables = {part.kind: methods.read_methods(part) for part in values.parts}
    for kind, table in tables.items():
        draw_methods(table, out / f"{kind}.svg", kind)
    chapters = [methods.chapter(values, part, tables[part.kind], f"{part.kind}.svg") for part in values.parts]
    return report.markdown(values, chapters), methods.as_json(tables)


def _claims(study: Study, out: Path, described: Described) -> tuple[str, Any]:
    """What may be claimed of methods."""
    values = described.study(study, out, study.trials, {})
    [part], [own] = values.parts, study.parts
    trainings = {m: {seed: claims.label(m, seed) for seed in claims.SAFEGUARD_SEEDS} for m in claims.METHODS}
    uses_base = [name for name in own.attacks if pick("holdfast.attacks", name).uses_base]
    rows = claim_tables.read_claims(values, part, trainings, uses_base, tested="tar")
    return report.markdown(values, claim_tables.chapters(values, part, rows, trainings)), claim_tables.as_json(rows)


def _families(red_team: RedTeam, family: str, out: Path, described: Described) -> tuple[str, Any]:
    """Families of attack by model: the page as text, the figures as JSON, the picture beside them."""
    values = described.study(red_team.study(out), out, red_team.trials, {})
    [part] = values.parts
    spaces = collect_families()
    settings = {
        name: {attack: spaces[name].settings(of) for attack, of in attacks.items()}
        for name, attacks in red_team.found(out).items()
    }
    rows = families.read_families(part, settings)
    picture = f"{family}.svg"
    draw_families(rows, [method.label for method in part.methods], out / picture)
    return report.markdown(values, families.chapters(values, part, rows, picture)), families.as_json(rows)


def _read(marker: Path) -> tuple[str, float]:
    """The study that a folder holds and the seconds spent on it so far."""
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
        return str(held["study"]), float(held["seconds"])
    except (ValueError, TypeError, KeyError) as error:
        raise HoldfastError(f"{marker} is damaged; remove it with its folder, or give another --out") from error
