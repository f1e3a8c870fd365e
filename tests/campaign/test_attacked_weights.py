"""Attacked weights are thrown away: whatever file is opened for writing while attacks run is seen, wherever it lies."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.attacks.base import Attack
from holdfast.campaign.cell import run_cell
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.run import run_campaign
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.report.page import build_report
from holdfast.runs.search.search import Budget, Search
from tests.conftest import SmallTestbed


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's is written to by others meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


_listeners: list[list[str]] = []
"""An audit hook cannot be taken off again, so there is one, and lists that it writes to."""


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners:
        return
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        mode, flags = arguments[1], arguments[2]
        writes = (
            any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        )
        if writes:
            _listeners[-1].append(os.fspath(arguments[0]))
    elif event == "os.rename":
        _listeners[-1].append(os.fspath(arguments[1]))


sys.addaudithook(_heard)


@contextmanager
def watched(*folders: Path) -> Iterator[list[str]]:
    """Every file that Python opens to write, and every file that is new in the folders (safetensors writes by itself)."""

    def files() -> set[str]:
        return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}

    before, seen = files(), list[str]()
    _listeners.append(seen)
    try:
        yield seen
    finally:
        _listeners.pop()
        seen += files() - before


ATTACKS: tuple[tuple[str, Attack], ...] = tuple(
    (name, replace(pick("holdfast.attacks", name), max_steps=steps))
    for name, steps in (("full-adamw-1e-3", 3), ("lora-r4-adamw-5e-3", 3), ("prune-50", 1))
)
_HARMLESS = (".jsonl", ".json", ".html", ".md", ".svg", ".lock")


def attack(testbed: SmallTestbed, out: Path, **options: bool) -> list[str]:
    """What was written while every attack ran, in this process."""
    model = Model(label="model", path=str(testbed.folder / "model"), role="defended")
    campaign = Campaign(models=(model,), domain=testbed.folder, attacks=ATTACKS, seeds=(0,), options=Options(**options))  # type: ignore[arg-type]
    folders = (out, Path(os.environ["HOLDFAST_CACHE"]), Path(tempfile.gettempdir()))
    with watched(*folders) as seen:
        for cell in campaign.cells():
            run_cell(cell, out)
        run_campaign(campaign, out, 1, title="t", suite="s")
        build_report([out], out / "report.html")
    return seen


def weights(seen: list[str]) -> set[str]:
    """All that is no record, plan or report."""
    system = ("/dev/", "/proc/", "/sys/")
    written = [Path(name) for name in seen if not name.startswith(system)]
    # A temporary file is named after what it becomes.
    return {str(path) for path in written if not {*path.suffixes} & {*_HARMLESS} and "__pycache__" not in path.parts}


def test_an_attack_leaves_no_weights(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    seen = attack(tiny_testbed, tmp_path / "out")
    assert any(name.endswith(".jsonl") for name in seen), "the watch sees what is written"
    assert not {name for name in weights(seen) if "safetensors" in name or str(tmp_path) in name}


def test_a_search_leaves_no_weights(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    search = Search(
        model=str(tiny_testbed.folder / "model"),
        domain=tiny_testbed.folder,
        families=("pruning",),
        budget=Budget(trials=2),
    )
    with watched(tmp_path, Path(os.environ["HOLDFAST_CACHE"])) as seen:
        search.run(tmp_path / "out")
    assert any(name.endswith(".json") for name in seen)
    assert not {name for name in weights(seen) if "safetensors" in name or str(tmp_path) in name}


def test_weights_that_are_asked_for_by_name_lie_where_their_name_says_what_they_are(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    kept = {
        name for name in weights(attack(tiny_testbed, tmp_path, keep_attacked_weights=True)) if "safetensors" in name
    }
    assert len({Path(name).parent for name in kept if Path(name).is_file()}) == len(ATTACKS)
    assert all("TAMPERED-" in name for name in kept)


@pytest.mark.parametrize("seconds", [0.0])
def test_the_state_of_a_resumable_attack_is_gone_when_it_has_ended(
    tiny_testbed: SmallTestbed, tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.walk.SAVE_EVERY", seconds)
    seen = attack(tiny_testbed, tmp_path, resumable_attacks=True)
    states = {name for name in seen if "safetensors" in name and str(tmp_path) in name}
    assert states
    assert all(Path(name).parent == tmp_path / "resume" for name in states)
    assert not list((tmp_path / "resume").iterdir())
