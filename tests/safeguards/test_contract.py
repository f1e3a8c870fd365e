"""What every preset of every safeguard keeps: the folder is the list."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from holdfast.attacks.finetune import FineTune
from holdfast.core.presets import collect, describe, leaves, restore
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.sharded import GradientSum
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.cir import CIR
from holdfast.safeguards.circuit_breakers import CircuitBreakers
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.outer_loop import OuterLoop
from holdfast.safeguards.r2d2 import R2D2
from holdfast.safeguards.rmu import RMU
from holdfast.safeguards.sophon import SOPHON
from holdfast.safeguards.tar import TAR
from holdfast.safeguards.undo import UNDO
from holdfast.testing import SAFEGUARD, name_of, safeguards, small
from holdfast.testing.walks import Walked, loaded, safeguard_path, walk_safeguard
from tests.attacks.walk import distinct
from tests.conftest import SmallTestbed

SAFEGUARDS: Mapping[str, Safeguard] = collect("holdfast.safeguards")
DISTINCT = distinct(SAFEGUARDS)


FIRST = {type(safeguard): name for name, safeguard in reversed(SAFEGUARDS.items())}.values()


def each(names: Iterable[str], usual: Collection[str] = DISTINCT) -> pytest.MarkDecorator:
    """The default run has the usual ones: by themselves those that together show every setting of every class."""
    marked = [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


every_safeguard = each(SAFEGUARDS)


def shortened(name: str, outer_steps: int = 2) -> Any:
    """The preset over a few small outer steps, on layers that the testbed's models have."""
    preset: Any = SAFEGUARDS[name]
    changes: dict[str, Any] = {"outer_steps": outer_steps}
    if getattr(preset, "distillation", None) is not None:
        changes["distillation"] = replace(preset.distillation, batch_size=6, generated_rows=24)
    if isinstance(preset, OuterLoop):
        entries = [replace(entry, attack=replace(entry.attack, batch_size=4)) for entry in preset.adversaries]
        changes |= {"adversaries": tuple(entries), "inner_steps": 4}
    if isinstance(preset, RMU) and preset.layer > 1:
        changes |= {"layer": 1, "retain": SAFEGUARDS["rmu"].retain}  # type: ignore[attr-defined]
    if isinstance(preset, CircuitBreakers):
        changes["layers"] = (1, 2)
    if isinstance(preset, CIR):
        changes["sample_rows"] = 12
    if isinstance(preset, R2D2):
        changes["suffixes"] = replace(
            preset.suffixes, length=3, search_steps=1, candidates=6, cases=3, cases_per_step=2
        )
    if getattr(preset, "latent", None) is not None:
        changes["latent"] = replace(preset.latent, layers=(0,))
    return small(preset, **changes)


@dataclass(frozen=True)
class Testbeds:
    """Both domains of one world."""

    __test__ = False

    knowledge: SmallTestbed
    refusal: SmallTestbed

    def of(self, safeguard: Any) -> SmallTestbed:
        """The domain that has the rows which a safeguard learns from."""
        return self.refusal if safeguard.needs_pairs else self.knowledge


@pytest.fixture(scope="module")
def tiny(tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed) -> Testbeds:
    return Testbeds(tiny_testbed, tiny_refusal_testbed)


def walk(safeguard: Safeguard, testbeds: Testbeds) -> Walked:
    """The weights after every outer step, and the losses of each."""
    return walk_safeguard(safeguard, testbeds.of(safeguard))


Check = Callable[[Safeguard, SmallTestbed], None]
ONCE = (safeguards.it_reads_the_defenders_rows_and_no_others, safeguards.in_microbatches_it_takes_the_same_first_step)
"""Checks of which the default run has one a class."""


@pytest.mark.parametrize("check", [check for check in SAFEGUARD if check not in ONCE], ids=name_of)
@every_safeguard
def test_a_safeguard_keeps_the_contract(name: str, check: Check, tiny: Testbeds) -> None:
    safeguard = shortened(name)
    check(safeguard, tiny.of(safeguard))


@each(SAFEGUARDS, usual=FIRST)
def test_in_microbatches_it_takes_the_same_first_step(name: str, tiny: Testbeds) -> None:
    safeguard = shortened(name)
    assert hasattr(safeguard, "micro_batch")
    safeguards.in_microbatches_it_takes_the_same_first_step(safeguard, tiny.of(safeguard))


@every_safeguard
def test_a_safeguard_of_holdfasts_names_its_retain_loss_and_its_adversaries(name: str, tiny: Testbeds) -> None:
    safeguard = shortened(name)
    _, losses = safeguard_path(safeguard, tiny.of(safeguard))
    assert all("retain loss" in here for here in losses)
    assert bool(safeguard.trains_against()) is isinstance(safeguard, OuterLoop)


@each(SAFEGUARDS, usual=FIRST)
def test_it_reads_the_defenders_rows_and_no_others(name: str, tiny: Testbeds, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    rows = Data._rows

    def seen(self: Data, role: str, *side: Any) -> Any:
        read.append(role)
        return rows(self, role, *side)

    monkeypatch.setattr(Data, "_rows", seen)
    safeguard = shortened(name, 1)
    safeguards.it_reads_the_defenders_rows_and_no_others(safeguard, tiny.of(safeguard))
    learned = {"forget", "forget_heldout"} if SAFEGUARDS[name].trains else set()
    assert {"retain", *learned} <= set(read)


@each(SAFEGUARDS, usual=FIRST)
def test_its_terms_by_their_weights_are_the_gradient_of_its_first_step(
    name: str, tiny: Testbeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `calibrate` measures is what is trained; and a term says the same at every call."""
    safeguard = shortened(name, 1)
    if isinstance(safeguard, SOPHON):
        safeguard = replace(safeguard, retain_weight=0.0)  # its two updates are taken one after the other
    if isinstance(safeguard, UNDO):
        safeguard = replace(safeguard, shrink=0.0, max_grad_norm=1e9)  # the first step begins elsewhere, and is clipped
    if isinstance(safeguard, TAR):
        safeguard = replace(safeguard, persistent_adversaries=0)  # whether a pool goes on is drawn too
    given: list[list[torch.Tensor]] = []
    give = GradientSum.give

    def noting(self: GradientSum) -> None:
        given.append([total.clone() for total in self._sum or []])
        give(self)

    monkeypatch.setattr(GradientSum, "give", noting)
    walk(safeguard, tiny)
    original, tokenizer, domain = loaded(tiny.of(safeguard).folder)
    model, sums = copy.deepcopy(original), list[list[torch.Tensor]]()
    for _ in range(2):
        model.train()
        seed_everything(3)
        run = Run(3, lambda: copy.deepcopy(original))
        gradients = GradientSum(model)
        for term in safeguard.terms(model, Data.defender(domain, tokenizer), run):
            alone = GradientSum(model)
            term.take(alone)
            alone.give()
            gradients.take(term.weight)
            assert term.setting in {".".join(path) for path in leaves(safeguard)}
        sums.append(gradients._sum or [])
    if not safeguard.trains or not given:  # it does not add up terms
        assert sums == [[], []]
        return
    for first, again, stepped in zip(*sums, given[0], strict=True):
        assert torch.equal(first, again)
        torch.testing.assert_close(first, stepped, rtol=1e-3, atol=1e-5)


@each((name for name, safeguard in SAFEGUARDS.items() if safeguard.trains), usual=FIRST)
def test_its_own_objective_is_what_it_lowers(
    name: str, small_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    """Its first loss ends lower than it does under the same safeguard with that loss given next to no weight."""
    safeguard, testbeds = shortened(name, 16), Testbeds(small_testbed, tiny_refusal_testbed)
    for field in ("learning_rate", "outer_learning_rate"):  # one that shows within these steps
        if getattr(safeguard, field, 1.0) < 1e-3:
            safeguard = replace(safeguard, **{field: 1e-3})
    _, losses = walk(safeguard, testbeds)
    own = next((loss for loss in losses[0] if loss != "retain loss"), "retain loss")
    weight = "tamper_resistance_weight" if isinstance(safeguard, OuterLoop) else "forget_weight"
    if own == "retain loss" or not hasattr(safeguard, weight):  # it has no other, or that alone
        assert losses[-1][own] < losses[0][own]
        return
    _, without = walk(replace(safeguard, **{weight: 1e-6}), testbeds)
    assert sum(here[own] for here in losses[-4:]) < sum(here[own] for here in without[-4:])


def test_an_adversary_may_be_any_attack_and_is_listed_at_each_of_its_rates() -> None:
    tuning = FineTune(benign_first=0.0)
    merging = collect("holdfast.attacks")["merge-base-25"]
    adversaries = (Adversary(attack=tuning, learning_rates=(1e-3, 2e-3), switch=(6.0, 3.0)), Adversary(attack=merging))
    safeguard = restore("holdfast.safeguards", json.loads(json.dumps(describe(TAR(adversaries=adversaries)))))
    fast, faster, merged = safeguard.trains_against()
    assert (fast.learning_rate, faster.learning_rate) == (1e-3, 2e-3)
    assert fast.benign_first == pytest.approx(2 / 3)
    assert merged == merging
