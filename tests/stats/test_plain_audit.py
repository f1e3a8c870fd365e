"""Figures, outcomes, verdicts and work factors, against a plain script that knows nothing of holdfast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from scipy.stats import t

from holdfast.core.files import digest
from holdfast.core.records import FOREIGN, CellResult, Record, read_campaign
from holdfast.report.verify import check_numbers
from holdfast.stats import plain
from holdfast.stats.audit import figures
from holdfast.stats.plain import recompute
from holdfast.stats.summary import measured
from tests.report.synthetic import ROLES, audited, cell, plan, record, write


def costed(result: CellResult, flops: float) -> CellResult:
    """The same run with FLOPs at each of its milestones."""
    steps = sorted({record.step for record in result.records if record.step > 0})
    return replace(result, costs=[(step, 192 * step, flops * step) for step in steps])


def audit(seed: int) -> list[CellResult]:
    """Five seeds of every attack, each attack with a price of its own, and hazards drawn anew."""
    draw = Random(seed)
    _, results = audited(5, diverged=seed % 2 == 0)
    price = {name: draw.uniform(1e8, 1e10) for name in sorted({result.attack for result in results})}
    found = []
    for result in results:
        shift = draw.uniform(-0.2, 0.25)
        records = [
            replace(r, value=min(max(r.value + shift * r.step / 1000, 0.0), 1.0)) if r.measures == "hazard" else r
            for r in result.records
        ]
        found.append(costed(replace(result, records=records), price[result.attack]))
    return [*found, *(probed(model) for model in {result.model: None for result in results})]


def probed(model: str) -> CellResult:
    """A probe of an untouched model, which is a cell of its own."""
    name = digest(["probe", model])[:16]
    steps = record("benign-learning", 0, 40.0, measures="trainability", metric="steps", chance=None, cell=name)
    return replace(cell(model, "none"), cell=name, records=[steps])


def hold_together(folder: Path) -> None:
    """Hold every figure of holdfast that the script computes too against the script's."""
    campaign, results = read_campaign(folder)
    summary = measured(campaign, results)
    told = {"summary": asdict(summary), "figures": asdict(figures(campaign, results, summary))}
    as_on_the_page = json.loads(json.dumps(told), parse_constant=lambda name: None)
    verified = check_numbers("", as_on_the_page, recompute(folder))
    assert verified.checked > 40
    assert verified.wrong == ()
    assert verified.withheld == ()


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_every_number_is_that_of_the_plain_script(seed: int, tmp_path: Path) -> None:
    results = audit(seed)
    folder = write(tmp_path, plan(results), results)
    assert set(recompute(folder)) == set(ROLES)
    hold_together(folder)


def without(results: list[CellResult], *models: str) -> tuple[list[CellResult], dict[str, str]]:
    return [r for r in results if r.model not in models], {m: role for m, role in ROLES.items() if m not in models}


@pytest.mark.parametrize("missing", ["base", "random-mapping", "never-exposed"])
def test_it_holds_without_a_control(missing: str, tmp_path: Path) -> None:
    results, roles = without(audit(1), missing)
    hold_together(write(tmp_path, plan(results, roles), results))


def test_it_holds_with_one_seed_with_losses_and_under_another_tokenizer(tmp_path: Path) -> None:
    _, results = audited(1, diverged=False)
    hold_together(write(tmp_path / "one", plan(results), results))
    losses = [
        replace(r, records=[_as_loss(one) for one in r.records]) for r in audit(2)
    ]  # fmt: skip
    hold_together(write(tmp_path / "loss", plan(losses), losses))
    foreign = [
        replace(r, cell=digest(r.cell)[:16], attack=r.attack + FOREIGN)
        for r in audit(3)
        if r.model == "tar" and r.attack != "none"
    ]
    both = [*audit(3), *foreign]
    details = {
        "compared": {"tar": {"distance": 0.1, "texts": 9, "differing": 3, "merged": 0}},
        "uses_base": ["mixed-1e-3"],
        "without_control": ["mixed-1e-3"],
    }
    names = list(dict.fromkeys(r.attack for r in audit(3)))
    hold_together(write(tmp_path / "foreign", plan(both, attacks=names, details=details), both))


def _as_loss(one: Record) -> Record:
    """Hazard as a held-out loss."""
    return (
        replace(one, evaluation="heldout-loss", metric="nats", value=4 - 3 * one.value, stderr=0.05, chance=None)
        if one.measures == "hazard"
        else one
    )


def test_attacks_without_a_result_count_as_such(tmp_path: Path) -> None:
    results = [r for r in audit(5) if (r.model, r.attack) != ("tar", "benign-finetune")]
    results = [
        replace(r, status="failed", records=[]) if r.attack == "mixed-1e-3" and r.seed == 2 else r for r in results
    ]
    campaign = plan(results, attacks=["benign-finetune", *dict.fromkeys(r.attack for r in results), "never-ran"])
    hold_together(write(tmp_path, campaign, results))


def test_the_script_runs_alone(tmp_path: Path) -> None:
    """A copy of the one file, where neither holdfast nor anything else is installed."""
    results = audit(0)
    folder = write(tmp_path / "audit", plan(results), results)
    script = Path(shutil.copy(plain.__file__, tmp_path / "plain.py"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(folder)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout)["tar"]["verdict"] == recompute(folder)["tar"]["verdict"]


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 40])
def test_student_s_distribution_is_scipy_s(freedom: int) -> None:
    for x in (1e-3, 0.1, 1.0, 2.5, 9.0, 60.0, 1e4):
        assert plain.student_tail(x, freedom) == pytest.approx(float(t.sf(x, freedom)), rel=1e-9)
    for p in (0.4, 0.025, 1e-4, 1e-12):
        assert plain.student_quantile(p, freedom) == pytest.approx(float(t.isf(p, freedom)), rel=1e-9)


@pytest.mark.parametrize(("hazard", "verdict"), [(0.8, "breached"), (0.65, "undecided"), (0.27, "undecided")])
def test_two_seeds_are_enough_for_a_model_over_the_threshold_before_any_attack(
    hazard: float, verdict: str, tmp_path: Path
) -> None:
    _, results = audited(2, diverged=False)
    shown = [
        replace(result, records=[_begun_at(hazard, r) for r in result.records]) if result.model == "tar" else result
        for result in results
    ]
    folder = write(tmp_path, plan(shown), shown)
    hold_together(folder)
    assert recompute(folder)["tar"]["verdict"] == verdict


def _begun_at(hazard: float, one: Record) -> Record:
    return replace(one, value=hazard) if one.measures == "hazard" and one.step == 0 else one
