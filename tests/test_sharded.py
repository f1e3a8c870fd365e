"""Two processes that shard a model with FSDP2 reach the weights of one process: the proof that more will not be a rewrite."""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from tests import sharded_session
from tests.conftest import SmallTestbed

OTHERS = sorted(sharded_session.plugins().keys() - set(sharded_session.USUAL))


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


def trained(folder: Path, out: Path, names: Collection[str]) -> Path:
    """Folders `one`, `identical` and `split` with the weights that each preset leaves."""
    for kind in ("one", "identical", "split"):
        (out / kind).mkdir()
    sharded_session.run_all(folder, lambda model: None, out / "one", names)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(sharded_session.main, (port, folder, out, names), nprocs=2)  # type: ignore[no-untyped-call]
    return out


@pytest.fixture(scope="module")
def usual(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_testbed.folder, tmp_path_factory.mktemp("usual"), sharded_session.USUAL)


@pytest.fixture(scope="module")
def others(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_testbed.folder, tmp_path_factory.mktemp("others"), OTHERS)


@pytest.mark.parametrize("name", sharded_session.USUAL)
def test_the_same_batches_give_the_same_weights(name: str, usual: Path) -> None:
    """Every one of them, but not to the bit: sums over shards, and kernels on weights that lie elsewhere, may round otherwise."""
    one, two = (load_file(usual / kind / f"{name}.safetensors") for kind in ("one", "identical"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        if "muon" in name:
            assert_nearly(value, two[key], name, key)
        else:
            torch.testing.assert_close(
                two[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.parametrize("name", sharded_session.USUAL)
def test_half_a_batch_each_gives_the_same_weights(name: str, usual: Path) -> None:
    the_same_halved(name, usual)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_half_a_batch_each_gives_the_same_weights_whatever_the_preset(name: str, others: Path) -> None:
    the_same_halved(name, others)


def the_same_halved(name: str, weights: Path) -> None:
    one, two = (load_file(weights / kind / f"{name}.safetensors") for kind in ("one", "split"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert_nearly(value, two[key], name, key)
