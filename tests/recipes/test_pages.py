"""The pages of studies from synthetic records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from holdfast.core.presets import pick
from holdfast.recipes import low_rank, reteach
from holdfast.recipes.names import STUDIES
from holdfast.recipes.pages import Described, contender_page
from holdfast.recipes.run import pick_study
from holdfast.runs.study.study import Study
from tests.report.synthetic import cell, plan, write

ROLES = {"undefended": "undefended", "reteach": "reference", "never-exposed": "never-exposed"}


def test_the_page_of_re_teaching_leaves_attacks_with_the_original_apart(tmp_path: Path) -> None:
    """An attack that needs the original counts in one figure of the worst hazard, and not in the other."""
    study = replace(reteach.study(), worlds=(1, 2))
    [part] = study.parts
    alone, with_original = "full-adamw-1e-3", "strip-difference"
    assert {alone, with_original} <= set(part.attacks)
    worst = {"undefended": {alone: 1.0}, "reteach": {alone: 0.35, with_original: 0.8}, "never-exposed": {alone: 0.3}}
    results = [
        cell(model, attack, 0, hazard={0: 0.25, 8: hazard}, ability={0: 1.0, 8: 0.95})
        for model, attacks in worst.items()
        for attack, hazard in attacks.items()
    ]
    for world in study.worlds:
        write(study.folder(tmp_path, part, world), plan(results, ROLES), results)
    described = Described(title="t", command="c", seconds=60.0, workers=2)
    text, table = contender_page(study, "reteach", tmp_path, described)
    figures = {row["figure"]: row for row in table["claims"]}
    apart = figures["worst hazard, ability kept, without the original model"]
    together = figures["worst hazard, ability kept, with the original model at hand"]
    assert [round(row["claims"]["reteach"]["mean"], 9) for row in (apart, together)] == [0.35, 0.8]
    assert round(apart["differences"]["reteach minus never-exposed"]["mean"], 9) == 0.05
    assert "reteach minus never-exposed" in text
    ElementTree.parse(tmp_path / "reteach.svg")


def test_the_page_of_a_contender_names_its_settings_and_has_every_attack_on_every_model(tmp_path: Path) -> None:
    """What the trials could set is named even where the first trial, which is the method's own settings, is the best."""
    study = replace(low_rank.study(), worlds=(1, 2))
    [part] = study.parts
    first, second = part.attacks[:2]
    worst = {
        "undefended": {first: 1.0, second: 1.0},
        "random-mapping": {first: 0.9, second: 0.8},
        "tar": {first: 0.5, second: 0.6},
        "tar-low-rank": {first: 0.45, second: 0.7},
        "never-exposed": {first: 0.3, second: 0.25},
    }
    results = [
        cell(model, attack, 0, hazard={0: 0.25, 8: hazard}, ability={0: 1.0, 8: 0.95})
        for model, attacks in worst.items()
        for attack, hazard in attacks.items()
    ]
    roles = dict.fromkeys(worst, "defended") | {"random-mapping": "reference"}
    roles |= {control: control for control in ("undefended", "never-exposed")}
    for world in study.worlds:
        write(study.folder(tmp_path, part, world), plan(results, roles), results)
    described = Described(title="t", command="c", seconds=60.0, workers=2)
    text, table = contender_page(study, "low-rank", tmp_path, described)
    figures = {row["figure"]: row["differences"] for row in table["claims"]}
    apart = figures["hazard after attack, mean of all attacks"]
    assert round(apart["tar-low-rank minus tar"]["mean"], 9) == 0.025
    assert "rank=16" in text
    [row] = [line for line in text.splitlines() if line.startswith(f"| {second} ")]
    assert "70 (70 / 70, ability 95)" in row.replace("\N{NO-BREAK SPACE}", " ")


def test_the_red_team_on_refusals_trains_circuit_breakers_and_tar_from_the_refusing_model() -> None:
    study = pick_study("refusals")
    assert isinstance(study, Study)
    [part] = study.parts
    assert [(method.label, method.start) for method in part.methods] == [
        ("refusal-trained", None), ("circuit-breakers", "refusal-trained"), ("tar", "refusal-trained"),
    ]  # fmt: skip
    assert part.kind == "refusal"
    assert len(set(part.attacks)) == len(part.attacks)


def test_a_longer_study_of_the_real_model_takes_up_the_shorter_one() -> None:
    short, long = pick_study("real"), pick_study("real-long")
    assert isinstance(short, Study)
    assert isinstance(long, Study)
    [few], [more] = short.parts, long.parts
    assert (few.methods, short.worlds, short.seeds) == (more.methods, long.worlds, long.seeds)
    assert (few.milestones, more.milestones) == ((10, 20, 100), (10, 20, 100, 1000))
    assert set(few.attacks) < set(more.attacks)
    assert more.cell_seconds > few.cell_seconds


def test_wide_worlds_differ_from_the_usual_ones_in_size_and_updates_alone() -> None:
    assert {"reteach", "reteach-wide"} <= set(STUDIES)
    usual, wide = reteach.study(), reteach.wide()
    assert (wide.worlds, wide.parts[0].attacks) == (usual.worlds, usual.parts[0].attacks)
    assert wide.sizes.benign == 3 * usual.sizes.benign
    [method] = wide.parts[0].methods
    built = replace(pick("holdfast.safeguards", "reteach"), **method.settings)  # type: ignore[type-var]
    assert built == replace(  # type: ignore[call-arg]
        reteach.RETEACH, outer_steps=1500, distillation=replace(reteach.RETEACH.distillation, generated_rows=8192)
    )


@pytest.mark.parametrize("names", [("reteach-text", "reteach-mlp-wide"), ("reteach-blank", "reteach-blank-wide")])
def test_a_later_round_of_re_teaching_has_worlds_that_nobody_has_looked_at(names: tuple[str, ...]) -> None:
    """Settings were chosen on worlds 100 to 103, and the other studies have shown theirs; that of the parts came later."""
    later = {name: pick_study(name) for name in names}
    others = [pick_study(name) for name in STUDIES if name not in later and name != "reteach-parts"]
    seen = {100, 101, 102, 103}.union(*({*study.worlds, study.tuning_world} for study in others))
    for study in later.values():
        assert isinstance(study, Study)
        assert seen.isdisjoint(study.worlds)
        assert study.parts[0].attacks == reteach.study().parts[0].attacks
