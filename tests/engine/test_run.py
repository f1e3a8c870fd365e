"""The driver: divergence, checkpoints and resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from tests.attacks.walk import fresh, weights
from tests.conftest import SmallTestbed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(bad: float) -> None:
    run = Run(0)
    run.start = 3
    walked = drive(iter([1.0, bad]), run)
    assert next(walked) == (4, 1.0)
    with pytest.raises(NonFinite, match=r"loss became -?(nan|inf) at step 5"):
        next(walked)


def test_of_several_losses_the_error_names_the_one() -> None:
    with pytest.raises(NonFinite, match="the retain loss became nan at step 1"):
        list(drive(iter([{"tamper-resistance loss": 1.0, "retain loss": math.nan}]), Run(0)))


def test_a_diverged_step_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFinite):
        list(drive(iter([math.nan]), nn.Linear(1, 1), Run(0), checkpoint=tmp_path / "run", every_seconds=0))
    assert not list(tmp_path.iterdir())


class Held:
    """Whatever state a plug-in may track."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state["state"]


def test_nested_state_survives_the_file_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": shared}, 7: {}},
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "fused": True, "foreach": None, "params": [0, 7]}],
        "views": [shared[::2], shared.view(2, 3).T],
        "empty": ([], (), {}),
        "numbers": [1, -0.0, math.inf, 1e-320, "text", False],
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    run, model = Run(0), nn.Linear(2, 2)
    run.track(held=Held(state))
    run.save(tmp_path / "run", model, 5, "key")
    again, held, other = Run(0), Held(), nn.Linear(2, 2)
    again.resume(tmp_path / "run", other, "key")
    again.track(held=held)
    assert again.start == 5
    assert torch.equal(model.weight, other.weight)
    assert_same(held.state, state)


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    run = Run(1)
    torch.rand(3, generator=run.generator)
    torch.manual_seed(5)
    run.save(tmp_path / "run", nn.Linear(1, 1), 1, "key")
    expected = torch.rand(2, generator=run.generator), torch.rand(2)
    model = nn.Linear(1, 1)
    torch.manual_seed(6)
    again = Run(1)
    again.resume(tmp_path / "run", model, "key")
    assert torch.equal(torch.rand(2, generator=again.generator), expected[0])
    assert torch.equal(torch.rand(2), expected[1])


def test_another_run_s_file_and_a_missing_file_are_ignored(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    Run(0).save(tmp_path / "run", model, 5, "one")
    other = nn.Linear(2, 2)
    before = other.weight.detach().clone()
    for path, key in ((tmp_path / "run", "another"), (tmp_path / "nothing", "one")):
        run = Run(0)
        run.resume(path, other, key)
        assert run.start == 0
        assert torch.equal(other.weight, before)


BASE = FineTune(batch_size=4, max_steps=6)
LORA = replace(BASE, lora_rank=2, lora_alpha=4.0, learning_rate=5e-3)
RESUMED: dict[str, tuple[FineTune, bool]] = {
    "adamw": (BASE, False),
    "cosine": (replace(BASE, schedule="warmup-cosine", warmup_steps=2), False),
    "sgd-momentum": (replace(BASE, optimizer="sgd-momentum", learning_rate=0.1), False),
    "schedule-free": (replace(BASE, optimizer="schedule-free-adamw"), False),
    "coin flip": (replace(BASE, benign_flip=0.5), False),
    "mixed": (replace(BASE, benign_share=0.5), False),
    "retain then forget": (replace(BASE, benign_first=0.4), False),
    "low rank over plain weights": (LORA, False),
    "low rank, schedule-free, clipped": (replace(LORA, optimizer="schedule-free-adamw", max_grad_norm=0.1), False),
    "low rank by peft, with dropout": (replace(LORA, lora_dropout=0.3), True),
}


def begin(attack: FineTune, prepared: bool, testbed: SmallTestbed) -> tuple[PreTrainedModel, Any, Run]:
    seed_everything(9)
    model, data = fresh(testbed)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    if prepared:
        attack.prepare(model)
    return model, data, Run(9)


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_to_the_same_weights(name: str, tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    attack, prepared = RESUMED[name]
    whole, data, run = begin(attack, prepared, tiny_testbed)
    losses = [loss for _, loss in drive(attack.steps(whole, data, run), run)]

    killed, data, run = begin(attack, prepared, tiny_testbed)
    steps = attack.steps(killed, data, run)
    for step, _ in drive(steps, killed, run, checkpoint=tmp_path / "run", key="k", every_seconds=0):
        if step == 4:  # which is not saved yet: the caller is not done with it
            break
    steps.close()

    resumed, data, run = begin(attack, prepared, tiny_testbed)
    run.resume(tmp_path / "run", resumed, "k")
    rest = list(drive(attack.steps(resumed, data, run), run))
    assert rest == list(enumerate(losses, start=1))[3:]
    assert torch.equal(weights(resumed), weights(whole))


def test_saving_now_and_then_changes_nothing(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    paths = []
    for checkpoint in (None, tmp_path / "run"):
        model, data, run = begin(BASE, False, tiny_testbed)
        list(drive(BASE.steps(model, data, run), model, run, checkpoint=checkpoint, key="k", every_seconds=0))
        paths.append(weights(model))
    assert torch.equal(*paths)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_base_is_loaded_once_and_frozen(tiny_testbed: SmallTestbed) -> None:
    loads = []

    def load() -> PreTrainedModel:
        loads.append(1)
        return fresh(tiny_testbed)[0].train()

    run = Run(0, load)
    assert not loads
    assert run.base is run.base
    assert len(loads) == 1
    assert not run.base.training
    assert not any(parameter.requires_grad for parameter in run.base.parameters())
    with pytest.raises(HoldfastError, match="--base"):
        _ = Run(0).base


def test_runs_inside_a_run_have_seeds_of_their_own_and_follow_its_seed() -> None:
    seeds = [[run.inner().seed for _ in range(3)] for run in (Run(1), Run(1), Run(2))]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6
