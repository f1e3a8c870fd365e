"""Siblings of the undefended model: other weights, each made as its name says."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from holdfast.engine.anatomy import linear_maps
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs import siblings
from holdfast.runs.siblings import place_sibling
from holdfast.testbed import models
from holdfast.testbed.folder import EARLIER
from tests.conftest import SMALLEST, SmallTestbed


def test_a_fine_tuned_and_a_quantised_sibling_are_changes_of_the_model(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "testbed"
    shutil.copytree(tiny_testbed.folder, folder)
    short = replace(siblings._MADE["fine-tuned"], max_steps=2)
    monkeypatch.setitem(siblings._MADE, "fine-tuned", short)
    original = {found.name: found.weight.detach() for found in linear_maps(tiny_testbed.model.load())}
    for which in ("fine-tuned", "quantised"):
        place = place_sibling(folder, which, 5, SMALLEST)
        assert place == folder / "siblings" / which
        assert place_sibling(folder, which, 5, SMALLEST) == place  # what is there stays
        assert Checkpoint(str(place)).card["sibling"] == which
        for found in linear_maps(Checkpoint(str(place)).load()):
            change = (found.weight.detach() - original[found.name]).norm() / original[found.name].norm()
            assert 1e-4 < change < 0.2, found.name
            if which == "quantised":
                groups = found.weight.detach().split(32, dim=1)
                assert max(len(torch.unique(row)) for group in groups for row in group[:4]) <= 15


def test_an_earlier_revision_is_the_same_training_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brief = replace(models.PRETRAINING["knowledge"], passes=1.0, rows_per_step=64)
    monkeypatch.setitem(models.PRETRAINING, "knowledge", brief)
    place = place_sibling(tmp_path, "earlier", 5, SMALLEST)
    card = json.loads((place / "holdfast.json").read_text())
    assert card["steps"] == math.ceil(EARLIER * brief.total_steps(card["rows"])) < brief.total_steps(card["rows"])
