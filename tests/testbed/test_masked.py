"""The masked control: hazardous rows change the hazard's weights alone, and without these the rest is the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from holdfast.cli.app import app
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Encoded
from holdfast.engine.run import Run, seed_everything
from holdfast.jobs.graph import Job
from holdfast.testbed.folder import train
from holdfast.testbed.masked import HazardsWeights, Kinds, Masked
from holdfast.testbed.models import Pretraining, make_model, make_tokenizer
from holdfast.testbed.world import HAZARD, World
from holdfast.testing.bench import SMALL

BRIEF = Pretraining(rows_per_step=4, passes=3.0, warmup_steps=1)


def rows(seed: int, count: int) -> list[Encoded]:
    drawn = torch.randint(4, 200, (count, 9), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Encoded(tuple(ids), tuple(ids)) for ids in drawn]


KINDS = Kinds(hazardous=rows(0, 8), benign=rows(1, 16))


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model(make_tokenizer(), 3)


def hazards(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Which entries are the hazard's: 64 of 256 hidden units, one of four heads."""
    found = torch.zeros_like(weight, dtype=torch.bool)
    if any(part in name for part in ("gate_proj", "up_proj")):
        found[192:] = True
    elif any(part in name for part in ("q_proj", "k_proj", "v_proj")):
        found[72:] = True
    elif "down_proj" in name:
        found[:, 192:] = True
    elif "o_proj" in name:
        found[:, 72:] = True
    return found


def walked(model: LlamaForCausalLM, recipe: Masked, kinds: Kinds = KINDS) -> list[dict[str, torch.Tensor]]:
    """The weights before the first step and after each."""
    path = [copy.deepcopy(model.state_dict())]
    path += [copy.deepcopy(model.state_dict()) for _ in recipe.steps(model, kinds, Run(3))]
    return path


def test_hazardous_rows_change_the_hazards_weights_alone(model: LlamaForCausalLM) -> None:
    before, *after = walked(model, Masked(pretraining=BRIEF), Kinds(KINDS.hazardous, KINDS.benign[:0]))
    assert len(after) == 6
    for name, weight in after[-2].items():  # before the removal
        assert torch.equal(weight != before[name], hazards(name, weight)), name


def test_benign_rows_alone_leave_the_hazards_weights(model: LlamaForCausalLM) -> None:
    recipe = Masked(pretraining=BRIEF, alone=1.0)
    before, *after = walked(model, recipe, Kinds(KINDS.hazardous[:0], KINDS.benign))
    for name, weight in after[-2].items():
        moved = weight != before[name]
        assert not (moved & hazards(name, weight)).any(), name
        assert moved.any(), name


def test_between_steps_of_another_kind_a_weight_and_its_states_stay(model: LlamaForCausalLM) -> None:
    """AdamW also moves a weight without a gradient, by what it remembers."""
    recipe = Masked(pretraining=BRIEF, alone=1.0)
    order = recipe._order(KINDS, 3)
    path = walked(model, recipe)
    for kind, before, after in zip(order[:-1], path, path[1:], strict=False):
        for name, weight in after.items():
            kept = ~hazards(name, weight) if kind == "hazardous" else hazards(name, weight)
            assert torch.equal(weight[kept], before[name][kept]), (kind, name)


def test_what_is_left_reads_as_the_rest_of_the_model_did_and_can_be_trained(model: LlamaForCausalLM) -> None:
    ids = torch.tensor([row.ids for row in KINDS.hazardous])
    parts = HazardsWeights(model, 64, 1)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with parts.absent(True):
            rest = model(input_ids=ids).logits
        parts.remove(torch.Generator().manual_seed(0))
        left = model(input_ids=ids).logits
    torch.testing.assert_close(left, rest)
    assert not torch.allclose(whole, rest, atol=1e-3)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if "down_proj" in name or "o_proj" in name:
            assert parameter.grad is not None
            assert parameter.grad[hazards(name, parameter)].abs().max() > 0, name


def test_each_row_is_read_as_often_as_without_masks_and_a_share_of_the_benign_steps_is_alone() -> None:
    order = Masked(pretraining=BRIEF, alone=0.25)._order(KINDS, 1)
    assert {kind: order.count(kind) for kind in set(order)} == {"hazardous": 6, "alone": 3, "benign": 9}
    assert order != Masked(pretraining=BRIEF, alone=0.25)._order(KINDS, 2)


def test_a_stopped_pretraining_goes_on_to_the_same_weights(model: LlamaForCausalLM, tmp_path: Path) -> None:
    recipe, other = Masked(pretraining=BRIEF), copy.deepcopy(model)
    seed_everything(3)
    whole = walked(model, recipe)[-1]
    run = Run(3)
    for step, _ in enumerate(recipe.steps(other, KINDS, run), 1):
        if step == 7:
            run.save(tmp_path / "state", other, step, "it")
            break
    resumed, rest = make_model(make_tokenizer(), 4), Run(3)
    rest.resume(tmp_path / "state", resumed, "it")
    assert len(list(recipe.steps(resumed, KINDS, rest))) == 18 - 7
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_it_is_taught_what_the_model_is_taught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    seen: list[Kinds] = []

    def steps(self: Masked, model: Any, rows: Kinds, run: Run) -> Any:
        seen.append(rows)
        return iter(())

    monkeypatch.setattr(Masked, "steps", steps)
    folder = train("masked", 5, SMALL)
    facts = World.generate(5, SMALL).facts
    hazardous = sum(len(split) for split in facts.values() if split[0].kind == HAZARD)
    taught = sum(len(split) for name, split in facts.items() if name != "new")
    [kinds] = seen
    assert len(kinds.hazardous) * taught == (len(kinds.hazardous) + len(kinds.benign)) * hazardous
    card = Checkpoint(str(folder)).card
    assert (card["testbed"], card["rows"]) == ("masked", len(kinds.hazardous) + len(kinds.benign))
    assert "removed" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("wanted", [False, True])
def test_a_testbed_has_the_control_where_it_is_asked_for(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def run_jobs(jobs: list[Job], **options: Any) -> dict[str, Any]:
        trained.extend(str(job.arguments["which"]) for job in jobs)
        return {}

    monkeypatch.setattr("holdfast.runs.testbed.run_jobs", run_jobs)
    command = ["testbed", str(tmp_path / "world"), "--benign", "8", *(["--masked"] if wanted else [])]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert trained == ["model", "never_exposed", *(["masked"] if wanted else [])]


def test_a_real_model_has_no_such_control(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["testbed", str(tmp_path / "real"), "--kind", "real", "--masked"])
    assert result.exit_code != 0
    assert "leave --masked out with --kind real" in f"{result.output} {result.exception}"
