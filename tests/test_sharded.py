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


def assert_nearly(value: torch.Tensor, other: torch.Tensor, name: str, key: str) -> None:
    """Nearly all weights agree, and none is far off."""
    # Evolution scores differences of losses. Muon gives every direction of a gradient one length, in bfloat16, and so to those
    # directions too that are rounding alone.
    closeness = 1e-4 if "muon" in name or "evolution" in name else 1e-5
    if name == "evolution-vectors-adam-3e-2-40":
        closeness *= 3  # three times the rate of the other one, and Adam steps by its whole rate
    # Other kernels round otherwise: with AVX2's, a thousandth of a matrix that Muon moved differs by more.
    share = 0.99 if "muon" in name else 0.999
    difference = (other - value).abs()
    allowed = closeness * (value.abs() + 1)
    assert (difference <= allowed).float().mean() > share, f"{key}: {difference.max()}"
    assert difference.max() < 1e-3, key


@pytest.fixture(scope="module")
def weights(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one`, `identical` and `split` with the weights that each preset leaves."""
    out = tmp_path_factory.mktemp("sharded")
    for kind in ("one", "identical", "split"):
        (out / kind).mkdir()
    sharded_session.run_all(tiny_testbed.folder, lambda model: None, out / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(sharded_session.main, (port, tiny_testbed.folder, out), nprocs=2)  # type: ignore[no-untyped-call]
    return out


@pytest.mark.parametrize("name", sharded_session.IDENTICAL)
def test_the_same_batches_give_the_same_weights(name: str, weights: Path) -> None:
    """Every one of them, but not to the bit: sums over shards, and kernels on weights that lie elsewhere, may round otherwise."""
    one, two = (load_file(weights / kind / f"{name}.safetensors") for kind in ("one", "identical"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if "muon" in name:
            assert_nearly(value, two[key], name, key)
        else:
            torch.testing.assert_close(
                two[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_half_a_batch_each_gives_the_same_weights(name: str, weights: Path) -> None:
    one, two = (load_file(weights / kind / f"{name}.safetensors") for kind in ("one", "split"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert_nearly(value, two[key], name, key)
