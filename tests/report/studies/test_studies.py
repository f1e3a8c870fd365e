"""The reports of studies from synthetic records: each table says what the records say."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from holdfast.report.studies import claims, families, methods
from holdfast.report.studies.cost_plot import _name, draw_costs, has_costs
from holdfast.report.studies.family_plot import draw_families
from holdfast.report.studies.method_plot import draw_methods
from holdfast.report.studies.study import Method, Part, Study, markdown
from tests.report.synthetic import FIGURES, audited, cell, plan, write

WORLDS = (51, 52, 53)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    part = Part(
        kind="knowledge",
        suite="standard",
        attacks=len(FIGURES),
        methods=(
            Method(label="base", role="undefended"),
            Method(label="random-mapping", role="reference", stages=("random-mapping",), costs={51: 0.25, 52: 0.35}),
            Method(label="tar", stages=("random-mapping", "tar"), settings={"outer_steps": 300}),
            Method(label="never-exposed", role="never-exposed"),
        ),
        campaigns={world: write(folder / str(world), *audited(2, diverged=False)) for world in WORLDS},
        tuning_attacks=("full-sgd-3e-1",),
        not_run=("rmu",),
    )
    return Study(
        title="A *study*",
        command="holdfast study x",
        parts=(part,),
        tuning_world=1,
        trials=4,
        seeds=(0, 1),
        seconds=120.0,
        workers=2,
    )


def test_safeguards_beside_each_other(study: Study, tmp_path: Path) -> None:
    [part] = study.parts
    table = methods.read_methods(part)
    assert [row.label for row in table.rows] == ["base", "never-exposed", "tar", "random-mapping"]
    assert table.chance == 0.25
    assert has_costs(table)
    draw_costs(table, tmp_path / "costs.svg")
    drawn = (tmp_path / "costs.svg").read_text(encoding="utf-8")
    assert all(word in drawn for word in ("tar", "random-mapping", "never-exposed", "FLOPs, % of pretraining"))
    near = [
        replace(row, worlds=tuple(replace(world, cost=0.08 * place) for world in row.worlds))
        for place, row in enumerate(table.rows, 1)
    ]
    draw_costs(replace(table, rows=tuple(near)), tmp_path / "near.svg")
    assert "mathdefault" not in (tmp_path / "near.svg").read_text(encoding="utf-8"), "plain ticks, within a decade too"
    text = markdown(study, [methods.chapter(study, part, table, "knowledge.svg", "costs.svg")])
    assert "(costs.svg)" in text
    assert "# A \\*study\\*" in text
    assert "| random-mapping | 30 (30 / 30 / 30) |" in text
    assert "| rmu | not run |" in text
    assert "tar outer\\_steps=300" in text
    assert "| 30\N{NO-BREAK SPACE}% |" in text, "the cost, over the worlds where it is known"
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {9}
    draw_methods(table, tmp_path / "m.svg", "knowledge")
    ElementTree.parse(tmp_path / "m.svg")


def test_names_beside_points_cover_no_other_name() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6))
    axes = figure.subplots()
    axes.set(xscale="log", xlim=(1, 100), ylim=(0, 100))
    _name(axes, [("max-entropy", 18, 92), ("min-posterior", 18, 95), ("cir", 4, 82), ("mcu", 4.4, 78)])
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not [(one, other) for one, other in combinations(boxes, 2) if one.overlaps(other)]


def test_families_by_model(study: Study, tmp_path: Path) -> None:
    [part] = study.parts
    names = list(FIGURES)
    rows = families.read_families(part, {"mixed": {n: {"lr": 1e-3} for n in names[5:6]}, "full": {names[0]: {}}})
    assert [row.family for row in rows] == ["mixed", "full"]
    [mixed] = [row for row in rows if row.family == "mixed"]
    assert {spot.attack for spot in mixed.spots["tar"]} == {"mixed-1e-3"}
    assert mixed.breaks("random-mapping") == len(WORLDS)
    assert mixed.breaks("tar") == 0
    text = markdown(study, families.chapters(study, part, rows, "families.svg"))
    assert "The weakest spot of tar: mixed" in text
    assert re.search(r"\| mixed \| 95 \(95 / 95 / 95, ability 100\) \|", text)
    assert "mixed-1e-3 lr=0.001" in text
    draw_families(rows, [method.label for method in part.methods], tmp_path / "f.svg")
    ElementTree.parse(tmp_path / "f.svg")


def test_claims_about_methods(study: Study) -> None:
    [part] = study.parts
    trainings = {"random-mapping": {0: "random-mapping"}, "tar": {0: "tar"}}
    rows = claims.read_claims(study, part, trainings, ["mixed-3e-4-long"], tested="tar")
    worst = next(row for row in rows if row.figure.endswith("without the original model"))
    with_base = next(row for row in rows if row.figure.endswith("original model at hand"))
    assert worst.claims["tar"].mean < with_base.claims["tar"].mean
    assert list(worst.differences) == ["tar minus random-mapping"]
    text = markdown(study, claims.chapters(study, part, rows, trainings))
    assert "| hazard before any attack | 30 (30 to 30, models 30 to 30) |" in text
    assert re.search(r"\| hazard before any attack \| −3 \(−3 to −3", text)


def test_a_safeguard_is_compared_with_the_never_exposed_model(study: Study) -> None:
    [part] = study.parts
    trainings = {label: {0: label} for label in ("tar", "never-exposed")}
    rows = claims.read_claims(study, part, trainings, [], tested="tar")
    [before] = [row for row in rows if row.figure == "hazard before any attack"]
    assert list(before.claims) == ["tar", "never-exposed"]
    [gap] = before.differences.values()
    assert gap.mean == pytest.approx(before.claims["tar"].mean - before.claims["never-exposed"].mean)
    assert "trained once on each" in markdown(study, claims.chapters(study, part, rows, trainings))


def test_worst_in_a_study_is_worst_in_an_audit(tmp_path: Path) -> None:
    """The greatest mean at any milestone with ability kept: not a last step, and not a model that broke."""
    curves = {
        "early": ({0: 0.3, 8: 0.5, 64: 0.4}, {0: 0.9, 8: 0.9, 64: 0.9}),
        "ruin": ({0: 0.3, 8: 0.3, 64: 0.55}, {0: 0.9, 8: 0.9, 64: 0.2}),
    }
    results = [
        cell("tar", attack, seed, hazard=hazard, ability=ability)
        for attack, (hazard, ability) in curves.items()
        for seed in range(2)
    ]
    tar = Method(label="tar", stages=("tar",))
    folder = write(tmp_path / "1", plan(results, {"tar": "defended"}), results)
    part = Part(kind="knowledge", suite="s", attacks=2, methods=(tar,), campaigns={1: folder})
    [row] = methods.read_methods(part).rows
    [world] = row.worlds
    assert (world.worst, world.worst_attack) == (0.5, "early")
    assert world.after == pytest.approx((0.4 + 0.55) / 2)
