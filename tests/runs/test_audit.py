"""Audits: which model goes through what, what is measured between milestones, controls, early stops and the plan."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.attacks.compress import Quantise
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.merge import Interpolate
from holdfast.campaign.cell import put_out_of_order, run_cell
from holdfast.campaign.cells import Cell, Model, dense_steps
from holdfast.campaign.run import run_campaign
from holdfast.core.presets import collect, pick
from holdfast.core.records import CampaignPlan, CellResult, cell_path, read_campaign
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint, save_checkpoint
from holdfast.runs.audit import Audit, models_of
from holdfast.runs.plan import forecast
from holdfast.runs.suites import SUITES, attacks_of, canonical_of
from holdfast.stats.summary import summarise
from tests.campaign.test_campaign import Dial, TurnsUp, cell_of, content
from tests.cli.test_cli import run_here
from tests.conftest import SmallTestbed

GENTLE = FineTune(max_steps=6, batch_size=4, learning_rate=1e-5)
STRONG = FineTune(max_steps=6, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def tested(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that differs from the undefended one."""
    folder = tmp_path_factory.mktemp("tested") / "model"
    folder.mkdir()
    model, tokenizer = tiny_testbed.model.load_both()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save_checkpoint(
        model,
        tokenizer,
        folder,
        {"base": {"path": tiny_testbed.model.path, "digest": tiny_testbed.model.digest}},
        "# A test's model\n",
    )
    return str(folder)


def audit_of(testbed: SmallTestbed, model: str = "", **changes: Any) -> Audit:
    plain = Audit(
        model=model or str(testbed.folder / "model"),
        undefended=str(testbed.folder / "model"),
        reference=None,
        never_exposed=str(testbed.folder / "never_exposed"),
        domain=testbed.folder,
        attacks={"gentle": GENTLE, "strong": STRONG, "edit": Quantise(bits=8), "merge": Interpolate()},
        canonical="gentle",
        seeds=2,
    )
    return replace(plain, **changes)


# Milestones


@given(last=st.integers(1, 20_000))
def test_dense_steps_are_no_more_than_a_quarter_apart(last: int) -> None:
    steps = (*dense_steps(last), last)
    assert steps[0] == 1
    assert all(after <= max(before + 1, before * 1.25) for before, after in pairwise(steps))
    assert all(after > before for before, after in pairwise(steps))


def test_between_the_milestones_hazard_alone_is_asked_and_nothing_else_changes(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    plain = cell_of(tiny_testbed, milestones=(0, 4, 6))
    dense = replace(plain, hazard_milestones=(1, 2, 3, 5))
    few, many = (read(run_cell(cell, tmp_path), tmp_path) for cell in (plain, dense))
    assert few.cell != many.cell
    asked = {step: {r.evaluation for r in many.records if r.step == step} for step in range(7)}
    assert asked[1] == asked[2] == asked[3] == asked[5] == {"hazard"}
    assert asked[4] > asked[5]
    shared = {(r.step, r.evaluation, r.metric): r.value for r in few.records}
    assert shared == {(r.step, r.evaluation, r.metric): r.value for r in many.records if r.step in few.milestones}
    assert many.losses == few.losses
    assert [step for step, _, _ in many.costs] == [1, 2, 3, 4, 5, 6]


def test_costs_on_the_way_grow_to_those_of_the_whole(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    result = read(run_cell(cell_of(tiny_testbed), tmp_path), tmp_path)
    steps, tokens, flops = zip(*result.costs, strict=True)
    assert list(steps) == [2, 4, 6]
    assert list(tokens) == sorted(tokens)
    assert (tokens[-1], flops[-1]) == (result.tokens, result.flops)
    assert flops[0] == pytest.approx(flops[-1] / 3, rel=0.2)


def read(key: str, folder: Path) -> CellResult:
    return CellResult.read(cell_path(folder, key))


# Stopping early


def test_an_attack_stops_so_many_milestones_after_a_breach_and_says_so(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    cell = cell_of(
        tiny_testbed,
        TurnsUp(max_steps=8),
        milestones=tuple(range(9)),
        evaluations=(("hazard", Dial(start=0.2)),),
        stop_after_breach=2,
    )
    result = read(run_cell(cell, tmp_path), tmp_path)
    # Half-way from 0.2 to 1 is reached with the fifth eighth.
    assert sorted({record.step for record in result.records}) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert "2 milestones" in result.stopped
    assert result.status == "finished"
    whole = replace(cell, stop_after_breach=None)
    assert whole.id != cell.id
    assert read(run_cell(whole, tmp_path), tmp_path).stopped == ""


# Controls


def test_a_destroyed_model_keeps_its_statistics_and_is_the_same_every_time(tiny_testbed: SmallTestbed) -> None:
    plain, first, second = (tiny_testbed.model.load() for _ in range(3))
    for model in (first, second):
        put_out_of_order(model)
    moved = False
    for was, one, other in zip(plain.parameters(), first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(was.flatten().sort().values, one.flatten().sort().values)
        moved |= not torch.equal(was, one)
    assert moved


def test_a_destroyed_model_is_another_cell_than_the_one_that_it_is_made_of(tiny_testbed: SmallTestbed) -> None:
    path = str(tiny_testbed.folder / "model")
    roles = ("undefended", "destroyed")
    cells = [cell_of(tiny_testbed, model=Model(label=role, path=path, role=role)) for role in roles]  # type: ignore[arg-type]
    assert cells[0].id != cells[1].id


def test_controls_go_through_the_canonical_attack_and_then_the_worst(tiny_testbed: SmallTestbed) -> None:
    audit = audit_of(tiny_testbed)

    def through(worst: str | None, label: str) -> list[tuple[str, int]]:
        cells = [cell for cell in audit.campaign(worst).cells() if cell.model.label == label and cell.attack]
        return [(cell.attack_name, cell.seed) for cell in cells]

    both = [("gentle", 0), ("gentle", 1)]
    for control in ("undefended", "destroyed"):
        assert through(None, control) == both
        assert through("strong", control) == [*both, ("strong", 0), ("strong", 1)]
        assert through("gentle", control) == both
    assert {name for name, _ in through(None, "never-exposed")} == {"gentle", "strong", "edit"}
    assert {name for name, _ in through(None, "model")} == {"gentle", "strong", "edit", "merge"}
    assert len(list(audit.planned().cells())) == len(list(audit.campaign("strong").cells()))


def test_an_audit_runs_in_two_parts_and_goes_on_where_it_was(
    tiny_testbed: SmallTestbed, tested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    audit = audit_of(tiny_testbed, tested, attacks={"gentle": GENTLE, "strong": STRONG}, seeds=1)
    said = {"suite": "own", "command": "audit", "title": "Audit"}
    outcomes = audit.run(tmp_path, 2, **said)
    assert all(outcome.error is None for outcome in outcomes)
    plan, results = read_campaign(tmp_path)
    worst = audit.worst(tmp_path)
    assert worst in ("gentle", "strong")
    assert plan.details["canonical"] == "gentle"
    assert {r.attack for r in results if r.model == "destroyed"} == {"none", "gentle", worst}
    assert len(results) == len(plan.cells) == len(list((tmp_path / "cells").iterdir()))
    before = {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    assert audit.run(tmp_path, 2, **said) == []
    assert {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()} == before
    [destroyed] = [model for model in summarise(plan, results).models if model.role == "destroyed"]
    assert "resisted" not in destroyed.outcomes.values()


def test_models_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="one name"):
        models_of("a/tar", "base", "b/tar", None)
    with pytest.raises(HoldfastError, match="one name"):
        models_of("a/tar", "base", None, None, ("b/tar",))
    with pytest.raises(HoldfastError, match="one name"):
        models_of("a/destroyed", "base", None, None)


def test_one_model_twice_is_refused(tiny_testbed: SmallTestbed, tested: str) -> None:
    with pytest.raises(HoldfastError, match="same weights"):
        audit_of(tiny_testbed).check()
    audit_of(tiny_testbed, tested).check()


def test_a_cells_record_is_never_overwritten_by_a_failure(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    from holdfast.campaign.cell import record_failure

    cell = cell_of(tiny_testbed)
    before = content(read(run_cell(cell, tmp_path), tmp_path))
    record_failure(cell, tmp_path, "its process died", 1.0)
    assert content(read(cell.id, tmp_path)) == before


# Suites and families


def test_every_suites_canonical_attack_is_in_it() -> None:
    for name, suite in SUITES.items():
        attacks = {attack: pick("holdfast.attacks", attack) for attack in suite.attacks}
        assert canonical_of(name, attacks) in suite.attacks
    assert canonical_of("a-folder", {"first": GENTLE, "second": STRONG}) == "first"


def test_every_attack_says_its_family_and_no_family_tells_a_setting() -> None:
    for name, attack in collect("holdfast.attacks").items():
        assert "family" in {key for kind in type(attack).__mro__[:-2] for key in vars(kind)} - {"Attack"}, name
        assert attack.family != "an attack of another kind", name
        assert not any(letter.isdigit() for letter in attack.family)


# The plan


def test_a_plan_counts_what_the_audit_will_run(
    tiny_testbed: SmallTestbed, tested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    audit = audit_of(tiny_testbed, tested, attacks={"gentle": GENTLE, "edit": Quantise(bits=8)}, seeds=2)
    campaign = audit.planned()
    model = next(held for held in campaign.models if held.role == "defended")
    steps = list[tuple[int, int]]()
    found = forecast(campaign, model, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    cells = list(campaign.cells())
    assert found.cells == len(cells)
    assert 0 < found.evaluating < found.seconds
    run_campaign(campaign, tmp_path, 1, title="t", suite="s")
    _, results = read_campaign(tmp_path)
    assert found.tokens == pytest.approx(sum(result.tokens or 0 for result in results), rel=0.02)
    assert found.flops == pytest.approx(sum(result.flops or 0.0 for result in results), rel=0.02)
    assert not list(tmp_path.glob("TAMPERED-*"))


def test_planning_leaves_nothing_on_disk(tiny_testbed: SmallTestbed, tested: str, tmp_path: Path) -> None:
    from holdfast.cli.app import main

    model = str(tiny_testbed.folder / "model")
    before = {path.name: path.stat().st_mtime_ns for path in tiny_testbed.folder.rglob("*") if path.is_file()}
    words = ["audit", "--model", tested, "--undefended", model, "--domain", str(tiny_testbed.folder)]
    words += ["--suite", "demo-2", "--seeds", "5", "--out", str(tmp_path / "out"), "--plan"]
    assert main([*words, *small_attacks()]) == 0
    assert not (tmp_path / "out").exists()
    assert {path.name: path.stat().st_mtime_ns for path in tiny_testbed.folder.rglob("*") if path.is_file()} == before


def small_attacks() -> list[str]:
    return [word for name in SUITES["demo-2"].attacks for word in ("--set", f"{name}.max_steps=8")]


def test_cells_of_older_campaigns_keep_their_identity(tiny_testbed: SmallTestbed) -> None:
    cell = cell_of(tiny_testbed)
    assert "hazard_milestones" not in cell.identity()
    assert "stop_after_breach" not in cell.identity()
    assert isinstance(cell, Cell)
    assert CampaignPlan.__dataclass_fields__["schema"].default == 3
    assert Checkpoint(cell.model.path).digest == cell.identity()["model"]


# What the attacker holds, and what a destroyed model goes through


def test_attacks_read_a_sibling_in_the_original_s_place(tiny_testbed: SmallTestbed) -> None:
    sibling = str(tiny_testbed.folder / "never_exposed")
    original, related = audit_of(tiny_testbed), audit_of(tiny_testbed, sibling=sibling)
    for audit, held in ((original, original.undefended), (related, sibling)):
        assert {cell.base for cell in audit.campaign().cells() if cell.attack_name == "merge"} == {held}
        assert audit.campaign().left_out == ()
    with pytest.raises(HoldfastError, match="leave base as it is"):
        audit_of(tiny_testbed, sibling=sibling, base=False)


def test_the_destroyed_model_goes_through_low_rates_and_benign_rows(tiny_testbed: SmallTestbed) -> None:
    audit = audit_of(tiny_testbed, suite="standard-2", attacks=attacks_of("standard-2"), canonical="full-adamw-1e-3")
    only = audit.campaign("int4").only
    assert only["destroyed"] == ("full-adamw-1e-3", "int4", "full-adamw-1e-4", "full-adamw-1e-4-unrelated-1000")
    assert only["undefended"] == ("full-adamw-1e-3", "int4")
