"""The driver: divergence, checkpoints and resume."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.costs import Memory
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


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def hashed(content: bytes) -> bytes:
    """With a hash that fits, so that the damage lies in what is read after it."""
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "shorter than a hash": lambda content: content[:20],
    "zeros": lambda content: bytes(5000),
    "zeros of its length": lambda content: bytes(len(content)),
    "text": lambda content: b"hello",
    "cut in the header": lambda content: content[:60],
    "cut in a tensor": lambda content: content[: len(content) * 2 // 3],
    "without its last byte": lambda content: content[:-1],
    "with a byte more": lambda content: content + b"\0",
    "a bit of the weights": lambda content: flipped(content, len(content) - 200),
    "a bit of the header": lambda content: flipped(content, 40),
    "a bit of the hash": lambda content: flipped(content, len(content) - 1),
    "no safetensors": lambda content: hashed(bytes(500)),
    "a header that lies": lambda content: hashed((10**15).to_bytes(8, "little") + content[8:]),
    "no metadata": lambda content: hashed(save({"0": torch.zeros(2)})),
    "no tree": lambda content: hashed(save({"a": torch.zeros(20)}, metadata={"key": "key"})),
    "another tree": lambda content: hashed(save({"a": torch.zeros(20)}, metadata={"key": "key", "tree": "[]"})),
    "a tree of other tensors": lambda content: hashed(
        save({"a": torch.zeros(20)}, metadata={"key": "key", "tree": '{"dict": [["model", {"tensor": "7"}]]}'})
    ),
    "no weights": lambda content: hashed(save({"a": torch.zeros(20)}, metadata={"key": "key", "tree": '{"dict": []}'})),
    "of another version": lambda content: save(
        {"0": torch.zeros(20)}, metadata={"key": "key", "step": "1", "tree": "{}"}
    ),
}


@pytest.mark.situation("damaged file", "the state of a run")
@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_state_begins_the_run_anew_with_a_word(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, model = tmp_path / "run", nn.Linear(3, 3)
    Run(0).save(path, model, 5, "key")
    path.write_bytes(DAMAGED[what](path.read_bytes()))
    run, other = Run(0), nn.Linear(3, 3)
    before, random = other.weight.detach().clone(), run.generator.get_state()
    run.resume(path, other, "key")
    assert (run.start, run.seconds_before) == (0, 0.0)
    assert torch.equal(other.weight, before)
    assert torch.equal(run.generator.get_state(), random)
    [record] = caplog.records
    assert record.getMessage() == f"the saved state {path} is damaged or of another version; its run begins anew"
    run.save(path, model, 6, "key")
    again = Run(0)
    again.resume(path, other, "key")
    assert again.start == 6
    assert torch.equal(other.weight, model.weight)


@pytest.mark.situation("damaged file", "the state of a run")
def test_a_state_of_a_model_of_another_shape_begins_the_run_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(0).save(tmp_path / "run", nn.Linear(3, 3), 5, "key")
    run = Run(0)
    run.resume(tmp_path / "run", nn.Linear(3, 2), "key")
    assert run.start == 0
    assert len(caplog.records) == 1


@pytest.mark.situation("damaged file", "the state of a run")
def test_a_folder_in_the_state_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(HoldfastError, match="is where the state of a run is kept, and no file; move it away"):
        Run(0).resume(tmp_path / "run", nn.Linear(1, 1), "key")


def test_a_state_is_plain_safetensors_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Run(0).save(tmp_path / "run", nn.Linear(2, 2), 5, "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o600
    shapes = {tuple(tensor.shape) for tensor in load_file(tmp_path / "run").values()}
    assert {(2, 2), (2,), (32,)} <= shapes


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_state_is_written_without_a_copy_in_memory(tmp_path: Path) -> None:
    """Twice the weights lie in the optimizer's state; a copy of all three would not fit beside a large model."""
    size = 48 * 2**20
    run = Run(0)
    run.track(held=Held({"moments": [torch.ones(size // 4), torch.ones(size // 4)]}))
    model = nn.Linear(1, 1)
    run.save(tmp_path / "run", model, 1, "key")  # what is loaded at first is loaded
    memory = Memory("cpu")
    before = memory.peak()
    run.save(tmp_path / "run", model, 2, "key")
    after = memory.peak()
    assert before is not None
    assert after is not None
    assert after - before < size / 4
    assert (tmp_path / "run").stat().st_size > 2 * size


def test_seconds_add_up_over_the_processes_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("holdfast.engine.run.time.monotonic", lambda: now)
    run, model = Run(0), nn.Linear(1, 1)
    now += 7
    run.save(tmp_path / "run", model, 1, "key")
    now += 90  # what comes after the state is lost with it
    again = Run(0)
    again.resume(tmp_path / "run", model, "key")
    now += 3
    assert (again.seconds_before, again.seconds) == (7.0, 10.0)
    again.save(tmp_path / "run", model, 2, "key")
    third = Run(0)
    third.resume(tmp_path / "run", model, "key")
    assert third.seconds == 10.0
