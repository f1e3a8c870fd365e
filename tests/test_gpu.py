"""On a GPU every plug-in does what it does on a CPU, to rounding; skipped where there is no GPU.

`HOLDFAST_GPU=cpu` runs the same tests against the CPU, to try the tests themselves.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from holdfast.core.options import Options
from holdfast.core.types import Precision
from holdfast.engine.session import open_session
from holdfast.engine.walk import drive
from holdfast.testing import small
from holdfast.testing.walks import SEED
from tests.attacks.test_contract import ATTACKS
from tests.attacks.walk import distinct
from tests.conftest import SmallTestbed
from tests.evals.test_contract import EVALUATIONS, REFUSAL
from tests.safeguards.test_contract import DISTINCT, Testbeds, shortened

DEVICE = os.environ.get("HOLDFAST_GPU", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU is at hand")

STEPS = 3
ALIKE = 0.1
"""the greatest part of an update that rounding may turn: Adam's first steps take signs of gradients, small ones too"""
OTHER = {
    "spec-def": "singular vectors have no sign of their own",
    "cir": "as spec-def",
    "mcu": "as spec-def",
    **{name: "as spec-def" for name in ATTACKS if "refold" in name},
    "undo-generated": "its text is sampled on the device",
    "tar-distilled-generated": "as undo-generated",
    "evolution-vectors-adam-1e-2": "its directions are drawn on the device",
    "reinforce-64-adamw-1e-5-small": "its answers are sampled from rounded chances",
}
"""Plug-ins whose update on a GPU is another one by right."""


def update(
    plugin: Any,
    bench: SmallTestbed,
    view: Literal["attacker", "defender"],
    device: str,
    precision: Precision = "float32",
) -> torch.Tensor:
    """What a plug-in changes in the weights, on the CPU again."""
    prepare = [plugin.prepare] if view == "attacker" else []
    session = open_session(
        bench.model, bench.domain, view, SEED, Options(device=device, precision=precision), prepare=prepare,
        base=bench.never_exposed if view == "attacker" else bench.model,
    )  # fmt: skip
    before = {name: weight.detach().cpu().clone() for name, weight in session.model.named_parameters()}
    for _ in drive(plugin.steps(session.model, session.data, session.run), session.run):
        pass
    after = dict(session.model.named_parameters())
    assert {weight.device.type for weight in after.values()} == {torch.device(device).type}
    return torch.cat(
        [(after[name].detach().cpu().float() - before[name]).flatten() for name in before.keys() & after.keys()]
    )


def compare(name: str, plugin: Any, bench: SmallTestbed, view: Literal["attacker", "defender"]) -> None:
    here, there = update(plugin, bench, view, "cpu"), update(plugin, bench, view, DEVICE)
    if name in OTHER:
        assert float(there.norm()) == pytest.approx(float(here.norm()), rel=0.3)
        return
    difference = (there - here).norm() / here.norm().clamp(min=1e-12)
    assert difference < ALIKE, f"the update on {DEVICE} is another by {difference:.2g} of its length"


@pytest.fixture(scope="module")
def tiny(tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed) -> Testbeds:
    return Testbeds(tiny_testbed, tiny_refusal_testbed)


@pytest.mark.parametrize("name", sorted(DISTINCT))
def test_a_safeguard_makes_the_same_update(name: str, tiny: Testbeds) -> None:
    safeguard = shortened(name, STEPS)
    compare(name, safeguard, tiny.of(safeguard), "defender")


@pytest.mark.parametrize("name", sorted(distinct(ATTACKS)))
def test_an_attack_makes_the_same_update(name: str, tiny_testbed: SmallTestbed) -> None:
    attack = small(ATTACKS[name], STEPS)
    tune = getattr(attack, "tune", None)
    if getattr(attack, "lora_dropout", 0.0):  # dropout is drawn on the device
        attack = replace(attack, lora_dropout=0.0)
    elif getattr(tune, "lora_dropout", 0.0):
        attack = replace(attack, tune=replace(tune, lora_dropout=0.0))
    compare(name, attack, tiny_testbed, "attacker")


@pytest.mark.parametrize("precision", ["mixed", "lean"])
@pytest.mark.parametrize("name", ["random-mapping", "tar", "rmu"])
def test_a_safeguard_runs_in_every_precision(name: str, precision: Precision, tiny: Testbeds) -> None:
    safeguard = shortened(name, STEPS)
    changed = update(safeguard, tiny.of(safeguard), "defender", DEVICE, precision)
    assert bool(torch.isfinite(changed).all())
    assert changed.norm() > 0


@pytest.mark.parametrize("precision", ["mixed", "lean"])
@pytest.mark.parametrize("name", ["full-adamw-1e-3", "lora-r4-adamw-5e-3", "full-muon-5e-4", "full-schedule-free-1e-3"])
def test_an_attack_runs_in_every_precision(name: str, precision: Precision, tiny_testbed: SmallTestbed) -> None:
    changed = update(small(ATTACKS[name], STEPS), tiny_testbed, "attacker", DEVICE, precision)
    assert bool(torch.isfinite(changed).all())
    assert changed.norm() > 0


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_gives_the_same_score(
    name: str, tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    bench = tiny_refusal_testbed if name in REFUSAL else tiny_testbed
    evaluation = small(EVALUATIONS[name])
    scores = {}
    for device in ("cpu", DEVICE):
        model, tokenizer = bench.model.load(device), bench.model.load_tokenizer()
        scores[device] = {score.metric: score.value for score in evaluation.prepare(tokenizer, bench.domain)(model)}
    assert scores["cpu"].keys() == scores[DEVICE].keys()
    for key, value in scores["cpu"].items():
        assert scores[DEVICE][key] == pytest.approx(value, rel=0.05, abs=0.05), key
