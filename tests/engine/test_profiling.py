"""A profile has the first updates and their parts, and recording changes no number."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.engine.profiling import UPDATES, Profiling
from holdfast.engine.session import open_session
from holdfast.engine.walk import walk
from holdfast.safeguards.parts.adversary import Adversary
from tests.conftest import SmallTestbed

_ATTACK = FineTune(batch_size=2, max_steps=UPDATES + 1)


def _walked(testbed: SmallTestbed, plugin: Any, view: Any, *observers: Any) -> list[torch.Tensor]:
    base = testbed.never_exposed
    session = open_session(testbed.model, testbed.domain, view, 0, Options(), base=base)
    walk(session, plugin, *observers)
    return [weight.detach() for weight in session.model.parameters()]


def _names(folder: Path) -> set[str]:
    [trace] = folder.glob("*.json.gz")
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        return {event["name"] for event in json.load(file)["traceEvents"]}


def test_an_attack(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    alone = _walked(tiny_testbed, _ATTACK, "attacker")
    recorded = _walked(tiny_testbed, _ATTACK, "attacker", Profiling(folder=tmp_path, name="attack"))
    assert all(torch.equal(one, other) for one, other in zip(alone, recorded, strict=True))
    names = _names(tmp_path)
    assert names >= {"forward", "backward", *(f"update {i + 1}" for i in range(UPDATES))}
    assert f"update {UPDATES + 1}" not in names
    assert "aten::mm" in (tmp_path / "attack.txt").read_text(encoding="utf-8")


def test_an_outer_loop_that_ends_early(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    small = (Adversary(attack=_ATTACK),)
    tar = replace(pick("holdfast.safeguards", "tar"), outer_steps=1, inner_steps=2, every=2, adversaries=small)
    _walked(tiny_testbed, tar, "defender", Profiling(folder=tmp_path, name="stage-1"))
    assert _names(tmp_path) >= {"update 1", "adversary", "tamper resistance", "retain", "outer update", "forward"}
