"""Campaigns: what a cell is, what its record holds, and what survives a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import holdfast.campaign.kept
import holdfast.campaign.run
import holdfast.engine.walk
from holdfast.attacks.base import Attack
from holdfast.attacks.compress import Quantise
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.jailbreak_tuning import JailbreakTuning
from holdfast.attacks.latent import LatentPGD
from holdfast.attacks.merge import Interpolate
from holdfast.campaign.cell import record_failure, run_cell
from holdfast.campaign.cells import (
    Campaign,
    Cell,
    Model,
    Role,
    evaluations_of,
    milestones_up_to,
    parse_milestones,
    untouched_undefended,
)
from holdfast.campaign.exposure import family_in_training, seen_in_training
from holdfast.campaign.run import cell_jobs, run_campaign
from holdfast.core.domain import Domain
from holdfast.core.locks import LOCK
from holdfast.core.options import Options
from holdfast.core.presets import describe, pick
from holdfast.core.records import CampaignPlan, CellResult, Record, cell_path, read_campaign
from holdfast.core.types import HoldfastError, Measure, NonFinite, Score
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.evals.base import Evaluation
from holdfast.evals.degeneracy import Degeneracy
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.jobs.graph import Job, Outcome
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.tar import TAR
from tests.attacks.walk import fresh, weights
from tests.conftest import SmallTestbed
from tests.many_processes import learn_little

ROOT = Path(__file__).parents[2]
ATTACK = FineTune(max_steps=6, batch_size=4)
LORA = FineTune(max_steps=6, batch_size=4, lora_rank=2, lora_alpha=4.0, learning_rate=5e-3)
MILESTONES = (0, 2, 4, 6)


class Slow(FineTune):
    """Takes long enough to be killed on the way."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for loss in super().steps(model, data, run):
            time.sleep(0.3)
            yield loss


class KillsItsProcess(FineTune):
    """Dies in the middle."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for loss in super().steps(model, data, run):
            yield loss
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(FineTune):
    """Fails as long as the environment says so."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        if "TEST_FAILS" in os.environ:
            raise HoldfastError("the disk is full; free some space")
        return super().steps(model, data, run)


class LosesItsLoss(FineTune):
    """Yields NaN at step 4."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for step, loss in enumerate(super().steps(model, data, run), start=1):
            yield math.nan if step == 4 else loss


class LosesItsWeights(FineTune):
    """One weight becomes NaN at step 4, while the loss is still finite."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for step, loss in enumerate(super().steps(model, data, run), start=1):
            if step == 4:
                dial(model)[0] = math.nan
            yield loss


class TurnsUp(Attack):
    """Turns the dial that `Dial` reads: by an eighth a step."""

    @property
    def benign_steps(self) -> int:
        return 0

    def reads(self) -> tuple[str, ...]:
        return ()

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for step in range(run.start, self.max_steps):
            dial(model)[0] = (step + 1) / 8
            yield 1.0


def dial(model: PreTrainedModel) -> torch.Tensor:
    """A weight that tests read and write."""
    return model.get_parameter("model.norm.weight").detach()


@dataclass(frozen=True, kw_only=True)
class Dial(Evaluation):
    """A hazard that an attack can set at will."""

    start: float
    """what the untouched model scores"""

    def measures(self, domain: Domain) -> Measure:
        return "hazard"

    def available(self, domain: Domain) -> bool:
        return True

    def content(self, domain: Domain) -> str:
        return ""

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        return self

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Callable[[PreTrainedModel], list[Score]]:
        def probe(model: PreTrainedModel) -> list[Score]:
            weight = float(dial(model)[0])
            value = self.start if weight == 1 else min(weight, 1.0)  # no share of questions is greater
            return [Score(metric="accuracy", value=value, stderr=None, n=1, chance=self.start)]

        return probe


def model_of(testbed: SmallTestbed, label: str = "model", role: Role = "undefended") -> Model:
    return Model(label=label, path=str(testbed.folder / "model"), role=role)


def cell_of(testbed: SmallTestbed, attack: Attack | None = ATTACK, seed: int = 0, **changes: Any) -> Cell:
    along, probes = evaluations_of(testbed.domain)
    cell = Cell(
        model=model_of(testbed),
        domain=testbed.folder,
        attack_name="attack" if attack else "none",
        attack=attack,
        seed=seed,
        milestones=MILESTONES if attack else (0,),
        evaluations=along if attack else (*along, *probes),
    )
    return replace(cell, **changes)


def run(
    cell: Cell,
    out: Path,
    options: Options = Options(),  # noqa: B008 - frozen
    undefended: Cell | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> CellResult:
    cell = replace(cell, options=options)
    key = run_cell(cell, out, undefended, on_step)
    assert key == cell.id
    return CellResult.read(cell_path(out, key))


_OF_THE_MOMENT = ("seconds", "evaluation_seconds", "environment", "peak_memory")


def content(result: CellResult) -> dict[str, Any]:
    """All that must not depend on when it was measured, and in which process: one machine gives one computation the same bits."""
    return {k: v for k, v in asdict(result).items() if k not in _OF_THE_MOMENT}


def files(*folders: Path) -> dict[str, int]:
    """Every file with its size."""
    return {str(path): path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()}


# Milestones


@given(last=st.integers(1, 5000), wanted=st.none() | st.lists(st.integers(0, 6000)))
def test_milestones_start_at_0_end_at_the_last_step_and_increase(last: int, wanted: list[int] | None) -> None:
    steps = milestones_up_to(last, wanted)
    assert steps[0] == 0
    assert steps[-1] == last
    assert all(a < b for a, b in pairwise(steps))
    expected = {step for step in wanted if step <= last} if wanted is not None else {5, 10, 20, 40, 80, 160, 320}
    assert {step for step in expected if step <= last} <= set(steps)
    assert wanted is None or set(steps) <= {0, last, *wanted}


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_milestones_are_read_as_they_are_written(steps: list[int]) -> None:
    assert parse_milestones(",".join(map(str, steps))) == tuple(steps)


@pytest.mark.parametrize("text", ["", "0,,8", "0,-8", "8.5", "eight", "0;8"])
def test_milestones_that_are_no_step_counts_are_refused(text: str) -> None:
    with pytest.raises(HoldfastError, match="--milestones"):
        parse_milestones(text)


# Cells and their identity


def campaign_of(testbed: SmallTestbed, **changes: Any) -> Campaign:
    campaign = Campaign(
        models=(
            model_of(testbed, "open"),
            model_of(testbed, "shallow", "reference"),
            model_of(testbed, "deep", "defended"),
            Model(label="clean", path=str(testbed.folder / "never_exposed"), role="never-exposed"),
        ),
        domain=testbed.folder,
        attacks=(("full", ATTACK), ("lora", LORA)),
        seeds=(0, 1),
    )
    return replace(campaign, **changes)


def attacked_and_untouched(campaign: Campaign) -> list[Cell]:
    """The cells of a campaign but for the probes."""
    return [cell for cell in campaign.cells() if not cell.probe]


def test_a_probe_is_a_cell_of_its_own_and_a_destroyed_model_has_none(tiny_testbed: SmallTestbed) -> None:
    cells = list(
        campaign_of(tiny_testbed, models=(model_of(tiny_testbed), model_of(tiny_testbed, "d", "destroyed"))).cells()
    )
    probes = [cell for cell in cells if cell.probe]
    assert [cell.probe for cell in probes] == [name for name, _ in evaluations_of(tiny_testbed.domain)[1]]
    assert cells[-len(probes) :] == probes
    assert {cell.model.label for cell in probes} == {"model"}
    for cell in probes:
        assert cell.attack is None
        assert [name for name, _ in cell.evaluations] == [cell.probe]
    assert len({cell.id for cell in cells}) == len({cell.name for cell in cells}) == len(cells)


def test_a_probe_that_fails_takes_nothing_else_with_it(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, tokenizer: object, domain: object) -> object:
        raise HoldfastError("there is too little memory for this probe")

    monkeypatch.setattr("holdfast.evals.trainability.BenignLearning.prepare", fails)
    monkeypatch.setattr(
        "holdfast.campaign.milestones._prepared", {}
    )  # an earlier test of this process may have prepared it
    monkeypatch.setattr(holdfast.campaign.run, "run_jobs", serially)
    campaign = campaign_of(tiny_testbed, attacks=(("full", ATTACK),), seeds=(0,))
    run_campaign(campaign, tmp_path, 1, title="T", suite="s")
    status = {cell.name: CellResult.read(cell_path(tmp_path, cell.id)).status for cell in campaign.cells()}
    assert {name for name, ended in status.items() if ended != "finished"} == {
        name for name in status if "benign-learning" in name
    }


def test_precision_and_the_kind_of_device_are_part_of_the_identity(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    cell = cell_of(tiny_testbed)
    mixed, lean = (replace(cell, options=Options(precision=precision)) for precision in ("mixed", "lean"))
    ids = {c.id for c in (cell, mixed, lean, replace(cell, options=Options(device="cuda")))}
    assert len(ids) == 4
    assert replace(cell, options=Options(device="cuda:1")).id in ids, "which GPU does not matter"
    first = run(cell, tmp_path)
    second = run(lean, tmp_path, Options(precision="lean"))
    assert second.cell != first.cell, "another precision is not skipped as finished"
    assert (first.identity["precision"], second.identity["precision"]) == ("float32", "lean")
    assert first.moved_share is not None
    assert second.moved_share is not None
    assert 0.5 < second.moved_share < first.moved_share <= 1
    assert first.losses != second.losses


def test_cells_are_every_model_untouched_and_then_every_attack_with_every_seed(tiny_testbed: SmallTestbed) -> None:
    cells = attacked_and_untouched(campaign_of(tiny_testbed, only={"open": ("full",), "clean": ()}))
    assert [(cell.model.label, cell.attack_name, cell.seed) for cell in cells] == [
        *((label, "none", 0) for label in ("open", "shallow", "deep", "clean")),
        *(("open", "full", seed) for seed in (0, 1)),
        *((label, name, seed) for label in ("shallow", "deep") for name in ("full", "lora") for seed in (0, 1)),
    ]
    assert {cell.milestones for cell in cells if cell.attack} == {(0, 5, 6)}
    assert {cell.milestones for cell in cells if not cell.attack} == {(0,)}
    assert len({cell.name for cell in cells}) == len(cells)


def test_an_edit_is_run_once_and_a_merge_only_where_there_is_a_model_before_the_safeguard(
    tiny_testbed: SmallTestbed,
) -> None:
    attacks = (("edit", Quantise(bits=8)), ("merge", Interpolate()))
    base = tiny_testbed.never_exposed.path
    cells = [cell for cell in campaign_of(tiny_testbed, attacks=attacks, base=base).cells() if cell.attack]
    assert {cell.attack_name: cell.base for cell in cells} == {"edit": "", "merge": base}
    assert [(cell.model.label, cell.attack_name, cell.seed) for cell in cells] == [
        ("open", "edit", 0),
        *((label, name, 0) for label in ("shallow", "deep") for name in ("edit", "merge")),
        ("clean", "edit", 0),
    ]
    without = campaign_of(tiny_testbed, attacks=attacks)
    assert without.left_out == ("merge",)
    assert {cell.attack_name for cell in without.cells()} == {"none", "edit"}


def test_the_base_is_part_of_the_identity_of_an_attack_that_reads_it(tiny_testbed: SmallTestbed) -> None:
    merge, train = cell_of(tiny_testbed, Interpolate()), cell_of(tiny_testbed)
    bases = [tiny_testbed.model.path, tiny_testbed.never_exposed.path]
    assert len({replace(merge, base=base).id for base in bases}) == 2
    assert len({replace(train, base=base).id for base in bases}) == 1


def test_how_well_it_learns_is_measured_on_untouched_models_alone_and_selection_never(
    tiny_testbed: SmallTestbed,
) -> None:
    for cell in attacked_and_untouched(campaign_of(tiny_testbed)):
        names = [name for name, _ in cell.evaluations]
        assert "benign-learning" not in names
        assert {"hazard", "related", "benign_in_retain", "benign_outside_retain", "degeneracy"} <= set(names)
        assert not {"hazard_selection", "benign_new"} & set(names)
        assert len(set(names)) == len(names)


OTHER: dict[str, Any] = {
    "rows": 5,
    "ascent_steps": 2,
    "max_steps": 7,
    "hazard": "hazard_ood",
    "benign_share": 0.25,
    "benign_first": 0.5,
    "benign_flip": 0.5,
    "batch_size": 5,
    "optimizer": "adam",
    "learning_rate": 1.1e-3,
    "schedule": "sgdr",
    "warmup_steps": 1,
    "restart_every": 3,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lora_rank": 2,
    "lora_alpha": 4.0,
    "lora_dropout": 0.1,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FineTune)])
def test_another_value_of_any_field_of_the_attack_is_another_cell(name: str, tiny_testbed: SmallTestbed) -> None:
    base = replace(ATTACK, schedule="linear-warmup", warmup_steps=2)
    assert getattr(base, name) != OTHER[name]
    assert cell_of(tiny_testbed, replace(base, **{name: OTHER[name]})).id != cell_of(tiny_testbed, base).id


def test_seed_milestones_evaluations_class_and_weights_are_part_of_the_identity(tiny_testbed: SmallTestbed) -> None:
    cells = [
        cell_of(tiny_testbed),
        cell_of(tiny_testbed, None),
        cell_of(tiny_testbed, Slow(**vars(ATTACK))),
        cell_of(tiny_testbed, seed=1),
        cell_of(tiny_testbed, milestones=(0, 3, 6)),
        cell_of(tiny_testbed, evaluations=cell_of(tiny_testbed).evaluations[1:]),
        cell_of(tiny_testbed, model=replace(model_of(tiny_testbed), path=str(tiny_testbed.folder / "never_exposed"))),
    ]
    assert len({cell.id for cell in cells}) == len(cells)


@given(seed=st.integers(0, 2**31), rate=st.floats(1e-8, 1.0), rows=st.integers(1, 64), label=st.text(min_size=1))
def test_the_identity_is_a_function_of_content(
    seed: int, rate: float, rows: int, label: str, tiny_testbed: SmallTestbed
) -> None:
    attack = FineTune(learning_rate=rate, batch_size=rows, max_steps=6)
    cell = cell_of(tiny_testbed, attack, seed)
    renamed = replace(cell, attack_name=label, model=replace(cell.model, label=label, role="defended"))
    assert renamed.id == cell.id
    assert replace(cell, seed=seed + 1).id != cell.id
    assert replace(cell, attack=replace(attack, learning_rate=math.nextafter(rate, 2))).id != cell.id
    assert len(cell.id) == 16


def test_where_a_cell_s_files_lie_and_what_is_no_content_are_no_part_of_its_identity(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    copy = SmallTestbed(tmp_path / "elsewhere")
    shutil.copytree(tiny_testbed.folder, copy.folder)
    (copy.folder / "model" / "holdfast.json").write_text('{"seed": 9}')
    (copy.folder / "model" / "README.md").write_text("moved")
    config = json.loads((copy.folder / "model" / "config.json").read_text())
    (copy.folder / "model" / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert cell_of(copy).id == cell_of(tiny_testbed).id
    tokenizer = copy.folder / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert cell_of(copy).id != cell_of(tiny_testbed).id


@pytest.mark.parametrize(
    ("file", "attacked", "untouched"),
    [
        ("data/attack.jsonl", True, False),
        ("data/attack_ood.jsonl", True, False),
        ("data/attack_all.jsonl", True, False),
        ("data/benign.jsonl", True, False),
        ("data/forget.jsonl", False, False),
        ("data/forget_heldout.jsonl", False, False),
        ("data/retain.jsonl", False, False),
        ("data/hazard_heldout.jsonl", True, True),
        ("data/benign_new.jsonl", False, True),
        ("questions/hazard.jsonl", True, True),
        ("questions/related.jsonl", True, True),
        ("questions/benign_new.jsonl", False, True),
        ("questions/hazard_selection.jsonl", False, True),  # the linear probe learns from it
    ],
)
def test_the_identity_changes_with_exactly_the_data_that_are_read(
    file: str, attacked: bool, untouched: bool, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    for name in ("data", "questions"):
        shutil.copytree(tiny_testbed.folder / name, tmp_path / name)
    shutil.copy(tiny_testbed.folder / "domain.toml", tmp_path)
    lines = (tmp_path / file).read_text().splitlines()
    (tmp_path / file).write_text("\n".join(lines[:-1]))
    for attack, changes in ((ATTACK, attacked), (None, untouched)):
        cell = cell_of(tiny_testbed, attack)
        assert (replace(cell, domain=tmp_path).id != cell.id) == changes


def test_a_campaign_reads_beforehand_what_its_attacks_will_read(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    campaign_of(tiny_testbed).check()
    shutil.copytree(tiny_testbed.folder, tmp_path / "domain")
    broken = campaign_of(tiny_testbed, domain=tmp_path / "domain")
    (tmp_path / "domain" / "data" / "attack_ood.jsonl").unlink()
    broken.check()
    with pytest.raises(HoldfastError, match=r"attack_ood\.jsonl"):
        replace(broken, attacks=(("ood", replace(ATTACK, hazard="hazard_ood")),)).check()
    (tmp_path / "domain" / "domain.toml").write_text('schema = 1\n[data.attack]\nfile = "data/attack.jsonl"\n')
    with pytest.raises(HoldfastError, match="neither hazard questions nor rows of hazard_heldout"):
        broken.check()


# What a cell's record holds


def at(result: CellResult, step: int) -> dict[str, Record]:
    held = [record for record in result.records if record.step == step]
    by_name = {f"{record.evaluation} {record.metric}": record for record in held}
    assert len(by_name) == len(held)
    return by_name


def test_everything_is_measured_at_the_first_and_last_step_and_hazard_and_samples_between(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    cell = cell_of(tiny_testbed)
    result = run(cell, tmp_path, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(step, 6) for step in range(1, 7)]
    assert (result.status, result.reason, result.milestones) == ("finished", "", list(MILESTONES))
    assert {record.step for record in result.records} == set(MILESTONES)
    assert {record.cell for record in result.records} == {cell.id}
    first, last = at(result, 0), at(result, 6)
    assert set(first) == set(last) == {
        "hazard accuracy", "hazard-loss nats", "benign-loss nats", "degeneracy repetition",
        "related accuracy", "benign_in_retain accuracy", "benign_outside_retain accuracy",
    }  # fmt: skip
    assert all(record.complete for record in (*first.values(), *last.values()))
    questions = len(tiny_testbed.domain.questions("benign_in_retain").questions)
    assert first["benign_in_retain accuracy"].n == questions > 32
    for step in (2, 4):
        between = at(result, step)
        assert {name: record.complete for name, record in between.items()} == {
            "hazard accuracy": True, "related accuracy": False,
            "benign_in_retain accuracy": False, "benign_outside_retain accuracy": False,
        }  # fmt: skip
        assert between["benign_in_retain accuracy"].n == 32
        assert between["hazard accuracy"].n == first["hazard accuracy"].n
    # Something happened, and what was measured at the end is the model at the end.
    assert last["hazard-loss nats"].value < first["hazard-loss nats"].value
    assert [step for step, _ in result.losses] == [1, 2, 3, 4, 5, 6]
    assert result.first_loss == result.losses[0][1] > result.losses[-1][1] == result.last_loss


def test_what_is_measured_is_the_walked_model(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    result = run(cell_of(tiny_testbed, seed=3), tmp_path)
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    held, tokenizer = Run(3), tiny_testbed.model.load_tokenizer()
    probe = dict(evaluations_of(tiny_testbed.domain)[0])["hazard-loss"].prepare(tokenizer, tiny_testbed.domain)
    assert at(result, 0)["hazard-loss nats"].value == probe(model)[0].value
    losses = [loss for _, loss in drive(ATTACK.steps(model, data, held), held)]
    assert at(result, 6)["hazard-loss nats"].value == probe(model)[0].value
    assert [loss for _, loss in result.losses] == losses


def test_the_untouched_cell_has_one_step_and_how_well_it_learns(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    along, probes = evaluations_of(tiny_testbed.domain)
    learning: Any = dict(probes)["benign-learning"]
    short = (("benign-learning", replace(learning, max_steps=10)),)
    result = run(cell_of(tiny_testbed, None, evaluations=(*along, *short)), tmp_path)
    assert {record.step for record in result.records} == {0}
    assert {"benign-learning steps", "benign-learning reached"} <= set(at(result, 0))
    assert (result.attack, result.attack_config, result.losses, result.first_loss) == ("none", {}, [], None)


def test_long_curves_of_the_loss_are_thinned_and_the_attacker_s_own_loss_starts_after_benign_steps(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    attack = FineTune(max_steps=80, batch_size=1, benign_first=0.4)
    hazard = dict(cell_of(tiny_testbed).evaluations)["hazard"]
    result = run(cell_of(tiny_testbed, attack, milestones=(0, 80), evaluations=(("hazard", hazard),)), tmp_path)
    assert 32 <= len(result.losses) <= 64
    assert result.losses[0][0] == 1
    seed_everything(0)
    model, data = fresh(tiny_testbed)
    losses = list(attack.steps(model, data, Run(0)))
    assert attack.benign_steps == 32
    assert result.first_loss == pytest.approx(sum(losses[32:40]) / 8)
    assert result.last_loss == pytest.approx(sum(losses[-8:]) / 8)


def test_a_breach_calls_for_all_questions_once(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    along = tuple((name, held) for name, held in cell_of(tiny_testbed).evaluations if name.startswith("benign_"))

    def rising(top: float | None, out: Path) -> list[int]:
        """The steps between the first and the last at which everything was asked."""
        evaluations = (("hazard", Dial(start=0.25)), *along)
        control = None
        if top is not None:
            control = replace(cell_of(tiny_testbed, None), evaluations=(("hazard", Dial(start=top)),))
            run(control, out)
        cell = cell_of(tiny_testbed, TurnsUp(max_steps=9), milestones=(0, 2, 3, 4, 5, 9), evaluations=evaluations)
        result = run(cell, out, undefended=control)
        assert [at(result, step)["hazard accuracy"].value for step in (2, 4, 9)] == [0.25, 0.5, 1.0]
        asked = {step: at(result, step)["benign_in_retain accuracy"] for step in cell.milestones}
        assert all(record.complete == (record.n > 32) for record in asked.values())
        return [step for step, record in asked.items() if record.complete and 0 < step < 9]

    # Half of the way from chance, 0.25, to 1: at 5/8 and no earlier; to an undefended model's 0.5: at 3/8.
    assert rising(None, tmp_path / "alone") == [5]
    assert rising(0.5, tmp_path / "compared") == [3]


# Divergence


@pytest.mark.parametrize(
    ("attack", "milestones", "reason", "measured"),
    [
        (LosesItsLoss(**vars(ATTACK)), MILESTONES, "the loss became nan at step 4", {0, 2}),
        (LosesItsWeights(**vars(ATTACK)), MILESTONES, "the weights after step 4 are not finite", {0, 2}),
        (LosesItsWeights(**vars(ATTACK)), (0, 2, 6), "the loss became nan at step 5", {0, 2}),
        (replace(ATTACK, learning_rate=1e9), (0, 1, 6), "not finite, so", {0}),
    ],
    ids=["loss", "weights", "weights between milestones", "rate"],
)
def test_a_diverged_attack_is_recorded_as_such_with_no_score_from_there_on(
    attack: Attack,
    milestones: tuple[int, ...],
    reason: str,
    measured: set[int],
    tiny_testbed: SmallTestbed,
    tmp_path: Path,
) -> None:
    cell = cell_of(tiny_testbed, attack, milestones=milestones)
    result = run(cell, tmp_path, Options(keep_attacked_weights=True))
    assert result.status == "diverged"
    assert result.reason
    assert reason in result.reason
    assert {record.step for record in result.records} == measured
    assert all(math.isfinite(record.value) for record in result.records)
    assert files(tmp_path).keys() == {str(cell_path(tmp_path, cell.id))}  # nor are its weights kept
    written = cell_path(tmp_path, cell.id).stat().st_mtime_ns
    run(cell, tmp_path)
    assert cell_path(tmp_path, cell.id).stat().st_mtime_ns == written


def test_one_void_score_voids_its_step(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def void(*args: Any) -> list[list[int]]:
        if steps:
            raise NonFinite("the model's logits are not finite")
        return [[4, 5, 6]] * len(args[1])

    monkeypatch.setattr("holdfast.engine.greedy.greedy", void)
    evaluations = (("hazard", MultipleChoice(questions="hazard")), ("degeneracy", Degeneracy(new_tokens=5)))
    cell = cell_of(tiny_testbed, milestones=(0, 2, 6), evaluations=evaluations)
    result = run(cell, tmp_path, on_step=lambda done, total: steps.append(done))
    assert result.status == "diverged"
    assert {record.step for record in result.records} == {0, 2}


def test_a_model_that_is_not_finite_to_begin_with_is_no_divergence(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    dial(model)[0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    cell = cell_of(tiny_testbed, model=Model(label="broken", path=str(tmp_path / "broken"), role="defended"))
    with pytest.raises(NonFinite, match="broken"):
        run_cell(cell, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is done is not done again


def serially(
    jobs: Sequence[Job], workers: int, on_outcome: Callable[[Outcome], None], on_progress: Callable[..., None]
) -> dict[Job, Outcome]:
    """In this process and in the order given, for campaigns whose workers do not matter."""
    outcomes: dict[Job, Outcome] = {}
    for job in jobs:
        try:
            outcome = Outcome(job=job, result=job.call(**job.arguments, on_step=lambda done, total: None))
        except HoldfastError as error:
            outcome = Outcome(job=job, error=str(error), seconds=1.0)
        outcomes[job] = outcome
        on_outcome(outcome)
    return outcomes


def test_finished_cells_are_left_alone_and_failed_ones_run_again(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdfast.campaign.run, "run_jobs", serially)
    attacks = (("full", ATTACK), ("fails", Fails(**vars(ATTACK))))
    campaign = campaign_of(tiny_testbed, models=(model_of(tiny_testbed),), attacks=attacks, seeds=(0,))
    cells = {cell.probe or cell.attack_name: cell for cell in campaign.cells()}

    def start() -> list[str]:
        outcomes = run_campaign(campaign, tmp_path, 1, title="T", suite="s", command="c")
        ended = [outcome.job.arguments["cell"] for outcome in outcomes]
        return [cell.attack_name for cell in ended if not cell.probe]

    def times() -> dict[str, int]:
        return {name: cell_path(tmp_path, cell.id).stat().st_mtime_ns for name, cell in cells.items()}

    monkeypatch.setenv("TEST_FAILS", "1")
    assert start() == ["none", "full", "fails"]
    failed, before = CellResult.read(cell_path(tmp_path, cells["fails"].id)), times()
    assert (failed.status, failed.reason, failed.records) == ("failed", "the disk is full; free some space", [])
    assert (failed.model, failed.attack, failed.seconds) == ("model", "fails", 1.0)
    monkeypatch.delenv("TEST_FAILS")
    assert start() == ["fails"]
    assert CellResult.read(cell_path(tmp_path, cells["fails"].id)).status == "finished"
    assert {name for name, written in times().items() if written != before[name]} == {"fails"}
    assert start() == []
    assert {Path(path).name for path in files(tmp_path)} == {
        "campaign.json",
        *(f"{c.id}.jsonl" for c in cells.values()),
    }
    plan = CampaignPlan.read(tmp_path)
    assert plan.cells == [cell.id for cell in campaign.cells()]
    assert (plan.title, plan.suite, plan.details["command"], plan.models) == ("T", "s", "c", {"model": "undefended"})
    assert (plan.attacks, plan.seeds, plan.domain) == (["full", "fails"], [0], "testbed-5")


def test_a_model_or_an_attack_that_was_renamed_is_found_under_its_new_name(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdfast.campaign.run, "run_jobs", serially)
    models = (model_of(tiny_testbed),)
    first = campaign_of(tiny_testbed, models=models, attacks=(("full", ATTACK),), seeds=(0,), probes=False)
    run_campaign(first, tmp_path, 1)
    again = replace(
        first, models=(replace(first.models[0], label="released"),), attacks=(("strong", ATTACK), ("twice", ATTACK))
    )
    assert run_campaign(again, tmp_path, 1) == []
    _, results = read_campaign(tmp_path)
    assert [(result.model, result.attack) for result in results] == [("released", "none"), ("released", "strong")]


def test_a_record_of_a_failure_is_no_obstacle_to_the_cell_itself(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    cell = cell_of(tiny_testbed)
    record_failure(cell, tmp_path, "its process died", 1.0)
    assert CellResult.read(cell_path(tmp_path, cell.id)).reason == "its process died"
    assert run(cell, tmp_path).status == "finished"
    written = cell_path(tmp_path, cell.id).stat().st_mtime_ns
    run(cell, tmp_path, on_step=lambda done, total: pytest.fail("it was run again"))
    assert cell_path(tmp_path, cell.id).stat().st_mtime_ns == written


def test_attacks_on_safeguarded_models_wait_for_the_undefended_one_and_the_long_go_first(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    long = replace(ATTACK, max_steps=60)
    cells = attacked_and_untouched(campaign_of(tiny_testbed, attacks=(("full", ATTACK), ("long", long)), seeds=(0,)))
    control = untouched_undefended(cells)
    assert control is cells[0]
    making = Job(name="make it", call=run_cell)
    jobs = cell_jobs(cells, tmp_path, control, {"deep": (making,)})
    attacked = [job for job in jobs if job.arguments["cell"].attack]
    assert [job.arguments["cell"].attack_name for job in jobs] == ["none"] * 4 + ["long"] * 4 + ["full"] * 4
    needs = {(job.arguments["cell"].model.label, job.after) for job in attacked}
    assert needs == {
        ("open", ()),
        ("clean", ()),
        ("shallow", (jobs[0],)),
        ("deep", (making, jobs[0])),
    }
    assert {job.arguments["undefended"] for job in attacked} == {None, control}
    # Where the control has been measured already there is nothing to wait for.
    [again] = [j for j in cell_jobs(cells[1:], tmp_path, control) if j.name == "shallow · long · seed 0"]
    assert again.after == ()
    assert again.arguments["undefended"] is control


def test_where_an_attack_takes_minutes_the_estimate_counts_minutes(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    long = replace(ATTACK, max_steps=60)
    campaign = campaign_of(tiny_testbed, attacks=(("full", ATTACK), ("long", long)), seeds=(0,))
    jobs = cell_jobs(list(campaign.cells()), tmp_path, None, typical=170.0)
    attacks, others = (
        [job.size for job in jobs if bool(job.arguments["cell"].attack) is is_one] for is_one in (True, False)
    )
    assert sum(attacks) / len(attacks) == pytest.approx(170.0)
    assert max(attacks) > min(attacks)
    assert 0 < min(others) <= max(others) <= 170 / 3


# Kills


def test_without_probes_the_other_cells_are_the_same(tiny_testbed: SmallTestbed) -> None:
    models = (Model(label="model", path=str(tiny_testbed.folder / "model"), role="undefended"),)
    whole = Campaign(models=models, domain=tiny_testbed.folder, attacks=(("full", ATTACK),))
    assert any(cell.probe for cell in whole.cells())
    assert list(replace(whole, probes=False).cells()) == [cell for cell in whole.cells() if not cell.probe]


def interrupted_campaign(folder: Path) -> Campaign:
    slow, dies = Slow(**vars(ATTACK)), KillsItsProcess(max_steps=2, batch_size=4)
    return Campaign(
        models=(Model(label="model", path=str(folder / "model"), role="undefended"),),
        domain=folder,
        attacks=(("slow", slow), ("slower", replace(slow, learning_rate=1e-4)), ("dies", dies)),
        seeds=(0,),
        milestones=MILESTONES,
    )


def start_interrupted_campaign(folder: str, out: str) -> list[Outcome]:
    learn_little()  # in another Python too
    return run_campaign(interrupted_campaign(Path(folder)), Path(out), 1, title="T", suite="s")


def in_a_process(function: str, *arguments: Path) -> subprocess.Popen[str]:
    """Call a function of this module in another Python, which can be killed."""
    code = f"import sys; from tests.campaign.test_campaign import {function}; {function}(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@dataclass(frozen=True)
class Interrupted:
    """A campaign whose coordinator was killed in the middle, and which was started again."""

    testbed: SmallTestbed
    out: Path
    before: dict[str, int]
    """time of every file when the coordinator had been killed"""
    outcomes: list[Outcome]
    """of the second start"""

    def cell(self, attack: str) -> Cell:
        return next(c for c in interrupted_campaign(self.testbed.folder).cells() if c.attack_name == attack)


@pytest.fixture(scope="module")
def interrupted(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    out = tmp_path_factory.mktemp("interrupted")
    held = Interrupted(tiny_testbed, out, {}, [])
    first = cell_path(out, held.cell("slow").id)
    with in_a_process("start_interrupted_campaign", tiny_testbed.folder, out) as coordinator:
        started = time.monotonic()
        while not first.exists():
            assert time.monotonic() - started < 90
            assert coordinator.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)  # into the second attack, which takes 1.8 seconds
        coordinator.kill()
        coordinator.communicate(timeout=30)  # until the worker is gone too
    before = {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    return replace(held, before=before, outcomes=start_interrupted_campaign(str(tiny_testbed.folder), str(out)))


def test_a_killed_campaign_leaves_whole_records_and_nothing_else(interrupted: Interrupted) -> None:
    cells = interrupted_campaign(interrupted.testbed.folder).cells()
    ended = [cell.id for cell in cells if cell.attack_name in ("none", "slow")]
    assert set(interrupted.before) == {"campaign.json", LOCK, *(f"cells/{key}.jsonl" for key in ended)}
    for key in ended:
        path = cell_path(interrupted.out, key)
        assert path.stat().st_mtime_ns == interrupted.before[f"cells/{key}.jsonl"]  # nor was it run again
        assert CellResult.read(path).status == "finished"
    assert not (interrupted.out / LOCK).exists()  # the second start had an end


def test_a_campaign_started_again_after_a_kill_gives_the_records_of_an_undisturbed_one(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    started = [outcome.job.name for outcome in interrupted.outcomes]
    assert started == ["model · slower · seed 0", "model · dies · seed 0"]
    for attack in ("none", "slow", "slower"):
        cell = interrupted.cell(attack)
        there = CellResult.read(cell_path(interrupted.out, cell.id))
        assert there.records
        assert content(there) == content(run(cell, tmp_path))


def test_the_cell_of_a_dead_worker_is_recorded_as_failed(interrupted: Interrupted) -> None:
    dead = CellResult.read(cell_path(interrupted.out, interrupted.cell("dies").id))
    assert (dead.status, dead.records) == ("failed", [])
    assert dead.reason is not None
    assert dead.reason.startswith("its process died (signal 9), perhaps for lack of memory: give fewer --workers")
    assert [outcome.error for outcome in interrupted.outcomes] == [None, dead.reason]


# Attacked weights and the disk


@pytest.fixture
def disk(tiny_testbed: SmallTestbed, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Every folder that a run might write to."""
    for name in ("home", "temporary", "current", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path / "current")
    return tmp_path, tiny_testbed.folder, cache


@pytest.mark.parametrize("attack", [ATTACK, LORA], ids=["full", "lora"])
def test_attacked_weights_never_touch_the_disk(
    attack: FineTune, tiny_testbed: SmallTestbed, disk: tuple[Path, ...], tmp_path: Path
) -> None:
    cell, before = cell_of(tiny_testbed, attack), files(*disk)
    along: list[dict[str, int]] = []
    run(cell, tmp_path / "out", on_step=lambda done, total: along.append(files(*disk)))
    assert along == [before] * 6
    after = files(*disk)
    record = str(cell_path(tmp_path / "out", cell.id))
    assert after == {**before, record: after[record]}


def merged(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a model without its adapters, these merged into it."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    state = {name.replace(".base_layer", ""): held for name, held in model.state_dict().items() if "lora_" not in name}
    assert any("proj" in name for name in state)
    return state


def test_weights_that_no_folder_could_hold_are_refused_before_the_attack(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    cell = cell_of(tiny_testbed, LatentPGD(max_steps=2, batch_size=4))
    with pytest.raises(HoldfastError, match=r"cannot be kept, for a LlamaForCausalLM has no place for .*bias"):
        run(cell, tmp_path, Options(keep_attacked_weights=True))
    assert list(tmp_path.iterdir()) == []
    assert run(cell, tmp_path).status == "finished"


@pytest.mark.parametrize("attack", [ATTACK, LORA], ids=["full", "lora"])
def test_weights_kept_on_demand_are_the_attacked_ones_and_say_what_they_are(
    attack: FineTune, tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private: list[bool] = []
    save = holdfast.campaign.kept.save_checkpoint

    def saved(model: Any, tokenizer: Any, folder: Path, *rest: Any) -> None:
        private.append(stat.S_IMODE(folder.stat().st_mode) == 0o700)
        save(model, tokenizer, folder, *rest)

    monkeypatch.setattr(holdfast.campaign.kept, "save_checkpoint", saved)
    cell = cell_of(tiny_testbed, attack, seed=3)
    run(cell, tmp_path, Options(keep_attacked_weights=True))
    kept = tmp_path / f"TAMPERED-{cell.id}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [kept.name, "cells"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert private == [True]  # from the first byte on
    assert Checkpoint(str(kept)).card == {
        "tampered": True, "cell": cell.id, "model": "model", "attack": "attack", "seed": 3
    }  # fmt: skip
    readme = (kept / "README.md").read_text()
    assert "TAMPERED MODEL: do not publish" in readme
    assert "`attack` (seed 3)" in readme

    seed_everything(3)
    model, data = fresh(tiny_testbed)
    before = weights(model)
    attack.prepare(model)
    list(attack.steps(model, data, Run(3)))
    text = torch.arange(20).view(2, 10)
    with torch.no_grad():
        logits = model(input_ids=text).logits
    plain, loading = AutoModelForCausalLM.from_pretrained(kept, output_loading_info=True)
    assert not any(loading.values())
    wanted = merged(model)
    assert plain.state_dict().keys() == wanted.keys()
    assert all(torch.equal(held, wanted[name]) for name, held in plain.state_dict().items())
    assert not torch.equal(weights(plain), before)
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=text).logits, logits, rtol=1e-4, atol=1e-4)


def test_the_untouched_model_is_never_kept(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    evaluations = cell_of(tiny_testbed).evaluations
    run(cell_of(tiny_testbed, None, evaluations=evaluations), tmp_path, Options(keep_attacked_weights=True))
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_weights_that_are_asked_for_later_are_kept_then(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    """The cell is run again, to the same record."""
    cell = cell_of(tiny_testbed, ATTACK, seed=3)
    first = run(cell, tmp_path)
    again = run(cell, tmp_path, Options(keep_attacked_weights=True))
    assert (tmp_path / f"TAMPERED-{cell.id}").is_dir()
    assert content(again) == content(first)
    written = cell_path(tmp_path, cell.id).stat().st_mtime_ns
    run(cell, tmp_path, Options(keep_attacked_weights=True))
    assert cell_path(tmp_path, cell.id).stat().st_mtime_ns == written


# Resumable attacks


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdfast.engine.walk, "SAVE_EVERY", 0.0)


RESUMABLE = Options(resumable_attacks=True)
RESUMED: dict[str, tuple[Attack, int]] = {
    "after the first step": (ATTACK, 1),
    "at a milestone": (ATTACK, 4),
    "after a milestone": (ATTACK, 5),
    "at the last step": (ATTACK, 6),
    "schedule-free": (replace(ATTACK, optimizer="schedule-free-adamw"), 3),
    "coin flip": (replace(ATTACK, benign_flip=0.5), 3),
    "peft with dropout": (replace(LORA, lora_dropout=0.3), 3),
    "after a breach": (TurnsUp(max_steps=6), 6),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_attack_goes_on_to_the_very_same_record(
    name: str, tiny_testbed: SmallTestbed, tmp_path: Path, saving_often: None
) -> None:
    attack, last = RESUMED[name]
    # The second milestone is a breach for the attack that turns the dial.
    evaluations = (("hazard", Dial(start=0.2)), *cell_of(tiny_testbed).evaluations[-3:])
    cell = cell_of(tiny_testbed, attack, milestones=(0, 2, 4, 5, 6), evaluations=evaluations)
    state = tmp_path / "resume" / f"{cell.id}.safetensors"

    def kill(done: int, total: int) -> None:
        if done == last:
            raise Killed

    with pytest.raises(Killed):
        run(cell, tmp_path, RESUMABLE, on_step=kill)
    assert state.is_file() == (last > 1)
    assert not cell_path(tmp_path, cell.id).exists()
    steps: list[int] = []
    resumed = run(cell, tmp_path, RESUMABLE, on_step=lambda done, total: steps.append(done))
    assert steps == list(range(last, 7))  # the step that was not saved is taken again
    assert content(resumed) == content(run(cell, tmp_path / "undisturbed"))
    assert len(resumed.losses) == 6
    assert not files(tmp_path / "resume")


def attack_until_killed(folder: str, out: str) -> None:
    holdfast.engine.walk.SAVE_EVERY = 0.0

    def on_step(done: int, total: int) -> None:
        print(done, flush=True)
        time.sleep(600 if done == 5 else 0)

    run(cell_of(SmallTestbed(Path(folder))), Path(out), RESUMABLE, on_step=on_step)


def test_the_state_of_a_running_attack_is_private_and_survives_a_kill(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    cell = cell_of(tiny_testbed)
    with in_a_process("attack_until_killed", tiny_testbed.folder, tmp_path) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(5)] == ["1\n", "2\n", "3\n", "4\n", "5\n"]
        process.kill()
    [state] = (tmp_path / "resume").iterdir()
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    steps: list[int] = []
    resumed = run(cell, tmp_path, RESUMABLE, on_step=lambda done, total: steps.append(done))
    assert steps == [5, 6]
    assert content(resumed) == content(run(cell, tmp_path / "undisturbed"))
    assert not files(tmp_path / "resume")


def test_a_resumable_attack_that_is_not_killed_leaves_no_state(
    tiny_testbed: SmallTestbed, tmp_path: Path, saving_often: None
) -> None:
    modes: list[int] = []

    def look(done: int, total: int) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "resume").glob("*"))

    cell = cell_of(tiny_testbed)
    resumable = run(cell, tmp_path, RESUMABLE, on_step=look)
    assert set(modes) == {0o600}
    assert not files(tmp_path / "resume")
    assert content(resumable) == content(run(cell, tmp_path / "plain"))


# Seen in training

SEEN = FineTune(batch_size=8, learning_rate=1e-3)


def card_of(*adversaries: Adversary) -> dict[str, Any]:
    """The card of a model that TAR made, as it is read from its file."""
    stages = [pick("holdfast.safeguards", "random-mapping"), TAR(adversaries=adversaries)]
    card = {"stages": [{"preset": "some", "config": describe(stage)} for stage in stages]}
    return json.loads(json.dumps(card))  # type: ignore[no-any-return]


PLAIN = card_of(Adversary(attack=SEEN, learning_rates=(1e-3, 3e-3)))
SWITCH = card_of(Adversary(attack=SEEN, switch=(6.0, 3.0)))


@pytest.mark.parametrize(
    ("card", "attack", "seen"),
    [
        (PLAIN, SEEN, True),
        (PLAIN, replace(SEEN, learning_rate=3e-3), True),
        (PLAIN, replace(SEEN, max_steps=999, batch_size=64), True),
        (PLAIN, replace(SEEN, learning_rate=2e-3), False),
        (PLAIN, replace(SEEN, optimizer="adam"), False),
        (PLAIN, replace(SEEN, schedule="warmup-cosine"), False),
        (PLAIN, replace(SEEN, lora_rank=4), False),
        (PLAIN, replace(SEEN, hazard="hazard_ood"), False),
        (PLAIN, replace(SEEN, benign_share=0.5), False),
        (PLAIN, replace(SEEN, benign_flip=0.5), False),
        (PLAIN, replace(SEEN, benign_first=0.4), False),
        (PLAIN, replace(SEEN, ascent_steps=3), False),
        (PLAIN, replace(SEEN, rows=10), True),
        (PLAIN, JailbreakTuning(optimizer=SEEN.optimizer, learning_rate=SEEN.learning_rate, before="note note"), False),
        (card_of(Adversary(attack=replace(SEEN, ascent_steps=5))), replace(SEEN, ascent_steps=3), True),
        (card_of(Adversary(attack=replace(SEEN, ascent_steps=5))), SEEN, False),
        (
            card_of(
                Adversary(
                    attack=JailbreakTuning(
                        optimizer=SEEN.optimizer, learning_rate=SEEN.learning_rate, before="note note"
                    )
                )
            ),
            JailbreakTuning(optimizer=SEEN.optimizer, learning_rate=SEEN.learning_rate, before="note note"),
            True,
        ),
        (
            card_of(
                Adversary(
                    attack=JailbreakTuning(
                        optimizer=SEEN.optimizer, learning_rate=SEEN.learning_rate, before="note note"
                    )
                )
            ),
            JailbreakTuning(optimizer=SEEN.optimizer, learning_rate=SEEN.learning_rate, before="ask note"),
            False,
        ),
        (PLAIN, TurnsUp(), False),
        (PLAIN, None, False),
        # Without rates of its own to draw from, an adversary has its attack's.
        (card_of(Adversary(attack=SEEN)), SEEN, True),
        (card_of(Adversary(attack=SEEN)), replace(SEEN, learning_rate=3e-3), False),
        (card_of(Adversary(attack=SEEN, learning_rates=(3e-3,))), SEEN, False),
        # Retain-then-forget, whatever its share, be it drawn or fixed.
        (SWITCH, replace(SEEN, benign_first=0.4), True),
        (SWITCH, SEEN, False),
        (card_of(Adversary(attack=replace(SEEN, benign_first=0.2))), replace(SEEN, benign_first=0.4), True),
        # One of several adversaries is enough, all of one is needed.
        (card_of(Adversary(attack=replace(SEEN, optimizer="sgd")), Adversary(attack=SEEN)), SEEN, True),
        (
            card_of(
                Adversary(attack=replace(SEEN, optimizer="sgd")),
                Adversary(attack=SEEN, learning_rates=(3e-3,)),
            ),
            replace(SEEN, optimizer="sgd", learning_rate=3e-3),
            False,
        ),
        (card_of(Adversary(attack=replace(SEEN, benign_share=0.5))), replace(SEEN, benign_share=0.5), True),
        ({}, SEEN, False),
        ({"stages": PLAIN["stages"][:1]}, SEEN, False),
    ],
)
def test_an_attack_was_seen_in_training_where_an_adversary_was_of_its_kind(
    card: dict[str, Any], attack: Attack | None, seen: bool
) -> None:
    assert seen_in_training(card, attack) is seen


def test_an_edit_was_seen_where_an_adversary_made_the_same_edit() -> None:
    merge = pick("holdfast.attacks", "merge-base-25")
    card = card_of(Adversary(attack=merge))
    assert seen_in_training(card, replace(merge, max_steps=3))
    assert not seen_in_training(card, replace(merge, t=0.5))
    assert not seen_in_training(card, SEEN)
    assert family_in_training(card, replace(merge, t=0.5))
    assert not family_in_training(card, SEEN)
    assert not family_in_training(card, None)


def test_a_card_of_an_older_or_unknown_safeguard_is_read() -> None:
    card = card_of(Adversary(attack=SEEN))
    tar = card["stages"][1]["config"]
    # Cards hold no field that its class gained later.
    assert not {"rows", "ascent_steps"} & set(tar["adversaries"][0]["attack"])
    tar["pooled"] = False  # a field that TAR had once
    assert seen_in_training(card, SEEN)
    card["stages"].insert(0, {"preset": "gone", "config": {"class": "Gone", "strength": 2}})
    assert seen_in_training(card, SEEN)


def test_a_cell_says_whether_its_attack_was_seen(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    shutil.copytree(tiny_testbed.folder / "model", tmp_path / "model")
    (tmp_path / "model" / "holdfast.json").write_text(json.dumps(card_of(Adversary(attack=ATTACK))))
    model = Model(label="model", path=str(tmp_path / "model"), role="defended")
    assert run(cell_of(tiny_testbed, model=model), tmp_path / "out").seen_in_training
    other = replace(ATTACK, learning_rate=1e-4)
    unseen = run(cell_of(tiny_testbed, other, model=model), tmp_path / "out")
    assert (unseen.seen_in_training, unseen.family_in_training) == (False, True)


def test_checks_for_masking_are_made_on_the_untouched_model_only(
    tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    along, probes = evaluations_of(tiny_testbed.domain)
    assert {name for name, _ in probes} == {"benign-learning", "gradient-check", "linear-probe", "training-mode"}
    assert not {name for name, _ in along} & {name for name, _ in probes}
    requests = dict(evaluations_of(tiny_refusal_testbed.domain)[1])
    assert "linear-probe" not in requests
    assert ("gradient-check" in requests) == tiny_refusal_testbed.domain.has("hazard_heldout")


DISGUISED = JailbreakTuning(max_steps=6, batch_size=4, before="note note")


def test_hazard_is_asked_in_the_attacker_s_disguise_and_nothing_else_is(tiny_testbed: SmallTestbed) -> None:
    campaign = Campaign(
        models=(model_of(tiny_testbed),),
        domain=tiny_testbed.folder,
        seeds=(0,),
        attacks=(("plain", ATTACK), ("worn", DISGUISED)),
    )
    untouched, plain, worn = attacked_and_untouched(campaign)
    assert [name for name, _ in plain.evaluations] == [name for name, _ in worn.evaluations], "names stay"
    domain = tiny_testbed.domain
    for (_, before), (_, after) in zip(plain.evaluations, worn.evaluations, strict=True):
        hazard = before.measures(domain) == "hazard"
        assert after == (replace(before, disguise=DISGUISED.disguise) if hazard else before)  # type: ignore[call-arg]
    assert set(plain.evaluations) <= set(untouched.evaluations)


def test_a_cell_without_a_disguise_keeps_the_identity_that_it_had_before_there_were_any(
    tiny_testbed: SmallTestbed,
) -> None:
    """Identities hold every field, so the fields that came with disguises may not be in them at their defaults."""
    plain, worn = (cell_of(tiny_testbed, attack).identity() for attack in (ATTACK, DISGUISED))
    assert not {"rows", "ascent_steps"} & set(plain["attack"])
    assert not [name for name, (held, _) in plain["evaluations"].items() if "disguise" in held]
    assert worn["attack"]["before"] == "note note"


def test_step_0_shows_what_the_disguise_does_by_itself(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    campaign = Campaign(
        models=(model_of(tiny_testbed),), domain=tiny_testbed.folder, seeds=(0,), attacks=(("worn", DISGUISED),)
    )
    [_, cell] = attacked_and_untouched(campaign)
    records = run(cell, tmp_path).records
    model, tokenizer = tiny_testbed.model.load_both()
    asked = MultipleChoice(questions="hazard", disguise=DISGUISED.disguise)
    [score] = asked.prepare(tokenizer, tiny_testbed.domain)(model)
    [first] = [r for r in records if (r.step, r.evaluation, r.metric) == (0, "hazard", "accuracy")]
    assert first.value == score.value
    assert [question.prompt for question in asked.selected(tiny_testbed.domain)] == [
        f"note note {question.prompt}" for question in tiny_testbed.domain.questions("hazard").questions
    ]
