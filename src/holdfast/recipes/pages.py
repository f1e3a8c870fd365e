"""The pages of studies: the plain values that the report of a study is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast.attacks.space import collect_families
from holdfast.core.presets import pick
from holdfast.engine.checkpoint import Checkpoint
from holdfast.recipes import claims, paper_tables, real
from holdfast.report.blocks import Chapter
from holdfast.report.studies import claims as claim_tables
from holdfast.report.studies import families, methods, steps
from holdfast.report.studies import study as report
from holdfast.report.studies.cost_plot import draw_costs, has_costs
from holdfast.report.studies.family_plot import draw_families
from holdfast.report.studies.method_plot import draw_methods
from holdfast.report.studies.step_plot import draw_steps
from holdfast.runs.study.method import Method
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Part, Study
from holdfast.testbed.folder import pretraining_flops


@dataclass(frozen=True, kw_only=True)
class Described:
    """The run of a study, as its report describes the run."""

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
    pretraining: dict[int, float] = {}
    if part.kind == "knowledge" or part.kind == "refusal":
        pretraining = {world: pretraining_flops("model", world, study.sizes, part.kind) for world in study.worlds}
    safeguards = (
        report.Method(
            label=method.label,
            role=method.role,
            stages=method.stages,
            settings=_tuned(study, out, part, method) if method.space and study.trials else {},
            costs={
                world: spent / pretraining[world] for world, spent in _spent(study, out, part, method, "flops").items()
            }
            if pretraining
            else {},
        )
        for method in part.methods
    )
    undefended, clean = (report.Method(label=label, role=label) for label in ("undefended", "never-exposed"))
    return report.Part(
        kind=part.kind,
        suite=part.suite,
        attacks=len(part.attacks),
        methods=(undefended, *safeguards, *((clean,) if pretraining else ())),
        campaigns={world: study.folder(out, part, world) for world in study.worlds},
        tuning_attacks=part.tuning_attacks,
        not_run=tuple(not_run),
    )


def _tuned(study: Study, out: Path, part: Part, method: Method) -> dict[str, Any]:
    """The settings that trials are made of, as the best trial left them; those that stand in the preset are not named."""
    best = {**method.settings, **study.chosen(out, part, method).settings}
    return {name: value for name, value in best.items() if name in method.space}


def _spent(study: Study, out: Path, part: Part, method: Method, unit: Literal["flops", "seconds"]) -> dict[int, float]:
    """FLOPs or seconds of the method's stages on the worlds where it could be built."""
    spent = {}
    for world in study.worlds:
        folder = study.folder(out, part, world)
        if (folder / "models" / method.label).is_dir():
            stages = Checkpoint(str(folder / "models" / method.label)).card["stages"][-len(method.stages) :]
            spent[world] = float(sum(stage[unit] for stage in stages))
    return spent


def methods_page(study: Study, name: str, out: Path, described: Described) -> tuple[str, Any]:
    """Safeguards beside each other: the page as text, the figures as JSON, the pictures beside them."""
    values = described.study(study, out, study.trials, paper_tables.not_run(study) if name == "paper-tables" else {})
    tables = {part.kind: methods.read_methods(part) for part in values.parts}
    chapters = []
    for part in values.parts:
        table, picture, costs = tables[part.kind], f"{part.kind}.svg", ""
        draw_methods(table, out / picture, part.kind)
        if has_costs(table):
            draw_costs(table, out / (costs := f"{part.kind}-costs.svg"))
        chapters.append(methods.chapter(values, part, table, picture, costs))
    return report.markdown(values, chapters), methods.as_json(tables)


def claims_page(study: Study, out: Path, described: Described) -> tuple[str, Any]:
    """The page of claims about methods."""
    values = described.study(study, out, study.trials, {})
    trainings = {m: {seed: claims.label(m, seed) for seed in claims.SAFEGUARD_SEEDS} for m in claims.METHODS}
    chapters, rows = _claims(study, values, trainings, tested="tar")
    return report.markdown(values, chapters), claim_tables.as_json(rows)


def contender_page(study: Study, name: str, out: Path, described: Described) -> tuple[str, Any]:
    """The last method beside the others and the never-exposed model: the table of safeguards, and the claims' differences."""
    values = described.study(study, out, study.trials, {})
    [part] = values.parts
    table, picture = methods.read_methods(part), f"{name}.svg"
    draw_methods(table, out / picture, part.kind)
    labels = [method.label for method in study.parts[0].methods]
    chapters, rows = _claims(study, values, {one: {0: one} for one in (*labels, "never-exposed")}, tested=labels[-1])
    if part.role("defended"):
        chapters.append(families.attack_by_attack(part, study.parts[0].attacks))
    text = report.markdown(values, [methods.chapter(values, part, table, picture), *chapters])
    return text, {"methods": methods.as_json({part.kind: table}), "claims": claim_tables.as_json(rows)}


def _claims(
    study: Study, values: report.Study, trainings: claim_tables.Trainings, tested: str
) -> tuple[list[Chapter], list[claim_tables.ClaimRow]]:
    [part], [planned] = values.parts, study.parts
    uses_base = [name for name in planned.attacks if pick("holdfast.attacks", name).uses_base]
    rows = claim_tables.read_claims(values, part, trainings, uses_base, tested)
    return claim_tables.chapters(values, part, rows, trainings), rows


def steps_page(study: Study, kind: str, out: Path, described: Described) -> tuple[str, Any]:
    """Safeguards on a real model along the attacks: the page as text, the figures as JSON, the picture beside them."""
    values = described.study(study, out, study.trials, {})
    [part], [planned] = values.parts, study.parts
    minutes = {
        method.label: {world: seconds / 60 for world, seconds in _spent(study, out, planned, method, "seconds").items()}
        for method in planned.methods
    }
    along = tuple(column for column in real.ALONG if column.attack in planned.attacks)
    table = steps.read_steps(part, along, minutes)
    picture = f"{kind}.svg"
    draw_steps(table, steps.measured(part), out / picture)
    return report.markdown(values, steps.chapters(values, part, table, picture)), steps.as_json(table)


def families_page(red_team: RedTeam, kind: str, out: Path, described: Described) -> tuple[str, Any]:
    """Families of attack by model: the page as text, the figures as JSON, the picture beside them."""
    values = described.study(red_team.study(out), out, red_team.trials, {})
    [part] = values.parts
    spaces = collect_families()
    settings = {
        name: {attack: spaces[name].settings(of) for attack, of in attacks.items()}
        for name, attacks in red_team.found(out).items()
    }
    rows = families.read_families(part, settings)
    picture = f"{kind}.svg"
    draw_families(rows, [method.label for method in part.methods], out / picture)
    return report.markdown(values, families.chapters(values, part, rows, picture)), families.as_json(rows)
