"""What tests share: one thread, a cache of their own, and a small testbed that is trained once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", MPLBACKEND="agg")

import pytest
import torch
from filelock import FileLock

from holdfast.testbed.world import Sizes
from holdfast.testing import SMALL, Bench, make_bench
from tests.many_processes import PRELOADED, learn_little
from tests.situations import pytest_runtest_setup, pytest_terminal_summary  # noqa: F401  hooks

torch.set_num_threads(1)

SMALLEST = Sizes(forget=2, forget_heldout=1, attack=2, selection=2, claims=3, benign=2, new=1)
"""A world of 72 facts, on which a model is trained in seconds: enough wherever what the model knows does not matter."""


SmallTestbed = Bench
"""A testbed whose models may be trained."""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is read from or written to the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("HOLDFAST_CACHE")
    os.environ["HOLDFAST_CACHE"] = str(folder)
    yield folder
    os.environ.pop("HOLDFAST_CACHE")
    if before is not None:
        os.environ["HOLDFAST_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def quick_workers(cache: Path) -> Iterator[None]:
    """Workers start from a process that has loaded torch and transformers, which take each of them six seconds to load."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        for place in ("jobs.local", "campaign.on_ranks"):
            patch.setattr(f"holdfast.{place}._FRESH", multiprocessing.get_context("forkserver"))
        yield


@pytest.fixture(scope="session", autouse=True)
def short_learning() -> None:
    """Half of the time in which a model is measured goes into how well the model learns."""
    learn_little()


@pytest.fixture(autouse=True)
def usual_arithmetic() -> Iterator[None]:
    """Runs flush denormals, for the whole process; hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def small_testbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> SmallTestbed:
    """A testbed of the smallest world, its models trained: once, by the first of the test processes that needs them."""
    from holdfast.testbed.folder import MODELS, place, write_domain

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, trained = shared / "small", shared / "small-cache"
    with FileLock(shared / "small.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_CACHE", str(trained))
        write_domain(folder, 5, SMALL)
        for which in MODELS:
            place(folder, which, 5, SMALL)
    shutil.copytree(trained, cache, dirs_exist_ok=True)
    return SmallTestbed(folder)


@pytest.fixture(scope="session")
def tiny_testbed(tmp_path_factory: pytest.TempPathFactory) -> SmallTestbed:
    """The same world with models that are not trained: enough wherever what the model knows does not matter."""
    return make_bench(tmp_path_factory.mktemp("testbed") / "tiny")


@pytest.fixture(scope="session")
def tiny_refusal_testbed(tmp_path_factory: pytest.TempPathFactory) -> SmallTestbed:
    """As requests to be refused, with models that are not trained."""
    return make_bench(tmp_path_factory.mktemp("testbed") / "tiny-refusal", "refusal")
