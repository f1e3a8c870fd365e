"""What every preset of every safeguard keeps: the folder is the list."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.core.domain import DEFENDER_ROLES
from holdfast.core.presets import collect, describe, leaves, restore
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.sharded import GradientSum
from holdfast.engine.walk import drive
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.circuit_breakers import CircuitBreakers
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.outer_loop import OuterLoop
from holdfast.safeguards.rmu import RMU
from holdfast.safeguards.sophon import SOPHON
from holdfast.safeguards.tar import TAR
from holdfast.safeguards.undo import UNDO
from tests.attacks.walk import distinct, loaded, weights
from tests.conftest import SmallTestbed

SAFEGUARDS: Mapping[str, Safeguard] = collect("holdfast.safeguards")
DISTINCT = distinct(SAFEGUARDS)


FIRST = {type(safeguard): name for name, safeguard in reversed(SAFEGUARDS.items())}.values()


def each(names: Iterable[str], usual: Collection[str] = DISTINCT) -> pytest.MarkDecorator:
    """The default run has the usual ones: of several presets that differ in numbers alone, one."""
    marked = [pytest.param(name, marks=() if name in usual else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


every_safeguard = each(SAFEGUARDS)
Walked = tuple[list[torch.Tensor], list[dict[str, float]]]
_paths: dict[str, Walked] = {}


def shortened(name: str, outer_steps: int = 3) -> Any:
    """The preset over a few small outer steps, on layers that the testbed's models have."""
    preset: Any = SAFEGUARDS[name]
    changes: dict[str, Any] = {"outer_steps": outer_steps}
    for field, most in (
        ("forget_batch_size", 6), ("retain_batch_size", 6), ("tamper_resistance_batch_size", 4), ("inner_steps", 8),
        ("outer_warmup_steps", 2), ("warmup_steps", 2), ("persistent_adversaries", 1), ("persist_steps", 16),
    ):  # fmt: skip
        if hasattr(preset, field):
            changes[field] = min(getattr(preset, field), most)
    if getattr(preset, "distillation", None) is not None:
        changes["distillation"] = replace(preset.distillation, batch_size=6, generated_rows=24)
    if isinstance(preset, OuterLoop):
        small = [replace(entry, attack=replace(entry.attack, batch_size=4)) for entry in preset.adversaries]
        changes["adversaries"] = tuple(small)
    if isinstance(preset, RMU) and preset.layer > 1:
        changes |= {"layer": 1, "retain": SAFEGUARDS["rmu"].retain}  # type: ignore[attr-defined]
    if isinstance(preset, CircuitBreakers):
        changes["layers"] = (1, 2)
    if getattr(preset, "latent", None) is not None:
        changes["latent"] = replace(preset.latent, layers=(0,))
    return replace(preset, **changes)


@dataclass(frozen=True)
class Testbeds:
    """Both domains of one world."""

    __test__ = False

    knowledge: SmallTestbed
    refusal: SmallTestbed

    def of(self, safeguard: Any) -> SmallTestbed:
        """The domain that has the rows which a safeguard learns from."""
        learns_refusals = (
            getattr(safeguard, "refusal_weight", 0) > 0
            or getattr(safeguard, "side", None) == "chosen"
            or getattr(safeguard, "tamper_resistance", None) == "dpo"
        )
        return self.refusal if learns_refusals else self.knowledge


@pytest.fixture(scope="module")
def tiny(tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed) -> Testbeds:
    return Testbeds(tiny_testbed, tiny_refusal_testbed)


def walk(
    safeguard: Safeguard,
    testbeds: Testbeds,
    seed: int = 3,
    at_yield: Callable[[PreTrainedModel, Run], None] = lambda model, run: None,
    resume: Path | None = None,
) -> Walked:
    """The weights after every outer step, and the losses of each."""
    testbed = testbeds.of(safeguard)
    seed_everything(seed)
    original, tokenizer, domain = loaded(testbed.folder)
    model = copy.deepcopy(original)
    run = Run(seed, lambda: copy.deepcopy(original))
    if resume is not None:
        run.resume(resume, model, "it")
    path, losses = [], []
    for _, here in drive(safeguard.steps(model, Data.defender(domain, tokenizer), run), run):
        path.append(weights(model))
        losses.append(dict(here))
        at_yield(model, run)
    return path, losses


def path_of(name: str, testbeds: Testbeds) -> Walked:
    """The undisturbed path of a preset from seed 3, walked once."""
    if name not in _paths:
        _paths[name] = walk(shortened(name), testbeds)
    return _paths[name]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@every_safeguard
def test_every_outer_step_changes_the_weights_and_names_its_losses(name: str, tiny: Testbeds) -> None:
    path, losses = path_of(name, tiny)
    assert len(path) == shortened(name).outer_steps
    assert all(not torch.equal(before, after) for before, after in pairwise(path))
    assert all("retain loss" in here for here in losses)


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
    if not safeguard.trains:
        assert sums == [[], []]
        return
    for first, again, stepped in zip(*sums, given[0], strict=True):
        assert torch.equal(first, again)
        torch.testing.assert_close(first, stepped, rtol=1e-3, atol=1e-5)


@every_safeguard
def test_the_same_seed_gives_the_same_path_whatever_happens_at_a_yield_and_another_seed_another(
    name: str, tiny: Testbeds
) -> None:
    """To the bit, which a process promises to itself over batches of the same shape; and the original model stays as it is."""
    bases: list[PreTrainedModel] = []

    def disturb(model: PreTrainedModel, run: Run) -> None:
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        with torch.no_grad():
            model(input_ids=torch.arange(20).view(2, 10))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e3)
        bases.append(run.base)

    path, losses = path_of(name, tiny)
    again, repeated = walk(shortened(name), tiny, at_yield=disturb)
    assert same(path, again)
    assert losses == repeated
    assert same(path, walk(shortened(name), tiny, seed=4)[0]) is not SAFEGUARDS[name].trains
    assert torch.equal(weights(bases[-1]), weights(tiny.of(shortened(name)).model.load()))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in bases[-1].parameters())


@each(SAFEGUARDS, usual=FIRST)
def test_it_reads_the_defenders_rows_and_no_others(name: str, tiny: Testbeds, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    rows = Data._rows

    def seen(self: Data, role: str, *side: Any) -> Any:
        read.append(role)
        return rows(self, role, *side)

    monkeypatch.setattr(Data, "_rows", seen)
    walk(shortened(name, 1), tiny)
    assert set(read) <= set(DEFENDER_ROLES)
    learned = {"forget", "forget_heldout"} if SAFEGUARDS[name].trains else set()
    assert {"retain", *learned} <= set(read)


@every_safeguard
def test_a_stopped_walk_goes_on_to_the_same_weights(name: str, tiny: Testbeds, tmp_path: Path) -> None:
    saved = tmp_path / "state.safetensors"

    class Stopped(Exception):
        pass

    def stop(model: PreTrainedModel, run: Run) -> None:
        run.save(saved, model, 1, "it")
        raise Stopped

    with pytest.raises(Stopped):
        walk(shortened(name), tiny, at_yield=stop)
    rest, losses = walk(shortened(name), tiny, resume=saved)
    path, whole = path_of(name, tiny)
    assert same(rest, path[1:])
    assert losses == whole[1:]


@each(SAFEGUARDS, usual=FIRST)
def test_in_microbatches_it_takes_the_same_first_step(name: str, tiny: Testbeds) -> None:
    whole = path_of(name, tiny)[1][0]
    _, [parts] = walk(replace(shortened(name, 1), micro_batch=1), tiny)
    # What an edit that trains nothing reports is rounding itself.
    assert parts == pytest.approx(whole, rel=1e-4, abs=None if SAFEGUARDS[name].trains else 1e-5)


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


@every_safeguard
def test_a_safeguard_comes_back_from_its_card_and_says_what_it_trains_against(name: str) -> None:
    safeguard = SAFEGUARDS[name]
    assert restore("holdfast.safeguards", json.loads(json.dumps(describe(safeguard)))) == safeguard
    trained = safeguard.trains_against()
    assert all(isinstance(attack, Attack) for attack in trained)
    assert bool(trained) is isinstance(safeguard, OuterLoop)


def test_an_adversary_may_be_any_attack_and_is_listed_at_each_of_its_rates() -> None:
    tuning = FineTune(benign_first=0.0)
    merging = collect("holdfast.attacks")["merge-base-25"]
    adversaries = (Adversary(attack=tuning, learning_rates=(1e-3, 2e-3), switch=(6.0, 3.0)), Adversary(attack=merging))
    safeguard = restore("holdfast.safeguards", json.loads(json.dumps(describe(TAR(adversaries=adversaries)))))
    fast, faster, merged = safeguard.trains_against()
    assert (fast.learning_rate, faster.learning_rate) == (1e-3, 2e-3)
    assert fast.benign_first == pytest.approx(2 / 3)
    assert merged == merging
