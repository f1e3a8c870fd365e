"""Two processes that shard a model with FSDP2 reach the weights of one process: the proof that more will not be a rewrite."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from tests import sharded_session
from tests.conftest import SmallTestbed

NAMES = sorted(sharded_session.plugins())
ANOTHER_ORDER = (
    "clipped", "refold-clip-then-full-adamw-1e-3", "adaptive-refold-clip-then-full-adamw-9e-4", "tar", "tar-adamw",
    "random-mapping",
)  # fmt: skip
"""Where gradients are clipped, their norm is summed shard by shard; and where a loss reads hidden states, FSDP's identity nodes
make autograd add up the three gradients of each in another order."""


def assert_nearly(value: torch.Tensor, other: torch.Tensor, name: str, key: str) -> None:
    """Nearly all weights agree, and none is far off."""
    # Evolution scores differences of losses. Muon gives every direction of a gradient one length, in bfloat16, and so to those
    # directions too that are rounding alone.
    closeness = 1e-4 if "muon" in name or "evolution" in name else 1e-5
    if name == "evolution-vectors-adam-3e-2-40":
        closeness *= 3  # three times the rate of the other one, and Adam steps by its whole rate
    difference = (other - value).abs()
    allowed = closeness * (value.abs() + 1)
    assert (difference <= allowed).float().mean() > 0.999, f"{key}: {difference.max()}"
    assert difference.max() < 1e-3, key


@pytest.fixture(scope="module")
def weights(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one`, `identical` and `split` with the weights that each preset leaves."""
    out = tmp_path_factory.mktemp("sharded")
    for kind in ("one", "identical", "split"):
        (out / kind).mkdir()
    sharded_session.run_all(tiny_testbed.folder, lambda model: None, out / "one")
    for kind in ("identical", "split"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(sharded_session.main, (port, tiny_testbed.folder, out / kind, kind == "identical"), nprocs=2)  # type: ignore[no-untyped-call]
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_same_batches_give_the_same_bits(name: str, weights: Path) -> None:
    one, two = (load_file(weights / kind / f"{name}.safetensors") for kind in ("one", "identical"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if "muon" in name:
            assert_nearly(value, two[key], name, key)
        else:
            assert (two[key] - value).abs().max() <= (1e-5 if name in ANOTHER_ORDER else 0.0), key


@pytest.mark.parametrize("name", NAMES)
def test_half_a_batch_each_gives_the_same_weights(name: str, weights: Path) -> None:
    one, two = (load_file(weights / kind / f"{name}.safetensors") for kind in ("one", "split"))
    for key, value in one.items():
        assert_nearly(value, two[key], name, key)
