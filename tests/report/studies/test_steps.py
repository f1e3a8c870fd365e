"""Safeguards along an attack: what stands in the tables is what the records hold, at the step that a column names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from holdfast.core.files import digest
from holdfast.core.records import CampaignPlan, CellResult, Record, cell_path
from holdfast.report.studies.step_plot import draw_steps, style_of
from holdfast.report.studies.steps import Along, StepTable, chapters, read_steps
from holdfast.report.studies.study import Method, Part, Study, markdown

WORLDS, SEEDS = (8, 9, 10), (0, 1)
PLACES = (Along(attack="short", step=10), Along(attack="short", step=100), Along(attack="long", step=1000))
STEPS = {"none": (0,), "short": (0, 10, 100), "long": (0, 1000)}
METHODS = (
    Method(label="undefended", role="undefended"),
    Method(label="mapping", role="reference", stages=("random-mapping",)),
    Method(label="tar", stages=("random-mapping", "tar")),
)
RISE = {"undefended": 0.0, "mapping": 0.0006, "tar": 0.0002}
BEFORE = {"undefended": 0.9, "mapping": 0.3, "tar": 0.3}


def hazard(model: str, world: int, seed: int, step: int) -> float:
    return BEFORE[model] + RISE[model] * step + 0.01 * (world - 9) + 0.001 * seed * (step > 0)


def write(folder: Path, world: int, missing: str = "") -> None:
    """Records of one split; `missing` has no cell of the long attack."""
    cells = []
    for model in RISE:
        for attack, steps in STEPS.items():
            if attack == "long" and model == missing:
                continue
            for seed in SEEDS if attack != "none" else SEEDS[:1]:
                identity = {"model": model, "attack": attack, "seed": seed, "world": world}
                name = digest(identity)[:16]
                records = [
                    Record(
                        cell=name, step=step, evaluation=evaluation, measures=measures, metric=metric, value=value,
                        stderr=0.01, n=200, chance=0.25, complete=True,
                    )
                    for step in steps
                    for evaluation, measures, metric, value in (
                        ("hazard", "hazard", "accuracy", hazard(model, world, seed, step)),
                        ("hazard_unknown", "hazard", "accuracy", 0.25 + 0.0001 * step),
                        ("benign_outside_retain", "ability", "accuracy", 0.8 - 0.001 * step / 10),
                        ("compliance_likelihood", "hazard", "complied", 0.1 + 0.008 * min(step, 100)),
                    )
                ]  # fmt: skip
                result = CellResult(
                    cell=name, model=model, model_digest=model, attack=attack, attack_config={}, seed=seed,
                    status="finished", milestones=list(steps), records=records, identity=identity,
                )  # fmt: skip
                result.write(cell_path(folder, name))
                cells.append(name)
    roles = {method.label: method.role for method in METHODS}
    CampaignPlan(title="t", domain="d", suite="s", models=roles, cells=cells).write(folder)


def table_of(tmp_path: Path, missing: str = "") -> tuple[Part, StepTable]:
    for world in WORLDS:
        write(tmp_path / str(world), world, missing)
    campaigns = {world: tmp_path / str(world) for world in WORLDS}
    part = Part(kind="real", suite="s", attacks=2, methods=METHODS, campaigns=campaigns)
    return part, read_steps(part, PLACES, {"tar": {8: 10.0, 9: 12.0, 10: 14.0}})


def test_each_column_is_the_mean_over_splits_at_its_step(tmp_path: Path) -> None:
    _, table = table_of(tmp_path)
    for row in table.rows:
        for place, claim in zip((Along(attack="none", step=0), *PLACES), row.hazard, strict=True):
            seeds = SEEDS if place.step else SEEDS[:1]
            expected = fmean(hazard(row.label, world, seed, place.step) for world in WORLDS for seed in seeds)
            assert claim is not None
            assert claim.mean == pytest.approx(expected)
            assert claim.interval is not None
            assert claim.interval.low < claim.mean < claim.interval.high


def test_differences_are_paired_by_split_and_seed(tmp_path: Path) -> None:
    _, table = table_of(tmp_path)
    [tar] = [row for row in table.rows if row.label == "tar"]
    # What splits and seeds add is the same for both, so that nothing is left of the spread.
    for place, claim in zip(PLACES, tar.over_reference[1:], strict=True):
        assert claim is not None
        assert claim.mean == pytest.approx((RISE["tar"] - RISE["mapping"]) * place.step)
        assert claim.high - claim.low == pytest.approx(0.0, abs=1e-12)


def test_other_sets_stand_before_and_after_the_first_attack(tmp_path: Path) -> None:
    part, table = table_of(tmp_path)
    [tar] = [row for row in table.rows if row.label == "tar"]
    before, after = tar.sets["benign_outside_retain"]
    assert before is not None
    assert after is not None
    assert (before.mean, after.mean) == (pytest.approx(0.8), pytest.approx(0.79))
    assert tar.sets["related"] == (None, None)
    assert tar.minutes == 12.0
    study = Study(title="t", command="c", parts=(part,), tuning_world=7, trials=0, seeds=SEEDS, seconds=60.0, workers=2)
    draw_steps(table, "hazard", tmp_path / "real.svg")
    text = markdown(study, chapters(study, part, table, "real.svg"))
    assert "after 1,000 updates" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "80 → 79" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "fixed on split 7" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "<svg" in (tmp_path / "real.svg").read_text(encoding="utf-8")


def test_no_two_methods_of_a_picture_look_alike() -> None:
    assert len({style_of(index) for index in range(25)}) == 25
    assert style_of(0)[0] not in {style_of(index)[0] for index in range(1, 10)}, "the control's grey is its own"


def test_a_figure_that_some_run_lacks_is_a_dash(tmp_path: Path) -> None:
    _, table = table_of(tmp_path, missing="tar")
    [tar] = [row for row in table.rows if row.label == "tar"]
    assert tar.hazard[-1] is None
    assert tar.over_reference[-1] is None


def test_refusals_have_words_and_sets_of_their_own(tmp_path: Path) -> None:
    part, _ = table_of(tmp_path)
    requests = replace(part, kind="real-refusal")
    table = read_steps(requests, PLACES, {})
    study = Study(
        title="t", command="c", parts=(requests,), tuning_world=7, trials=6, seeds=(0, 1), seconds=1.0, workers=2
    )
    page = markdown(study, chapters(study, requests, table, "p.svg"))
    assert "Forbidden requests complied with" in page
    assert "benign requests refused" in page
    assert "a compliant answer likelier than a refusal" in page
    before, after = table.rows[-1].sets["compliance_likelihood"]
    assert before is not None
    assert after is not None
    assert (before.mean, after.mean) == (pytest.approx(0.1), pytest.approx(0.9))
    assert "best of 6 trials" in page
    assert "second relation" not in page
