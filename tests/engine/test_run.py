"""The driver: divergence, checkpoints and resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.run import Run
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed


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
