"""TAR against the plain transcription of its algorithm, and its parts one by one."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.attacks.finetune import FineTune
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.safeguards.mlac import MLAC
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.tar import TAR
from tests.conftest import SmallTestbed
from tests.reference import tar as reference

_ATTACK = FineTune(batch_size=4, weight_decay=0.01)
_SMALL = TAR(
    outer_steps=3,
    adversaries=(Adversary(attack=_ATTACK, learning_rates=(1e-3, 3e-3)),),
    inner_steps=8,
    every=2,
    schedule_rate=0.3,
    tamper_resistance_batch_size=4,
    retain_batch_size=6,
    outer_optimizer="adamw",
    outer_learning_rate=1e-3,
    outer_warmup_steps=2,
)


def _run(tar: TAR, testbed: SmallTestbed, seed: int = 3) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    seed_everything(seed)
    model, tokenizer = testbed.model.load_both()
    run = Run(seed, testbed.never_exposed.load)
    losses = [dict(here) for _, here in drive(tar.steps(model, Data.defender(testbed.domain, tokenizer), run), run)]
    return {name: p.detach().clone() for name, p in model.named_parameters()}, losses


def _read(tar: TAR, testbed: SmallTestbed, seed: int = 3) -> list[reference.OuterStep]:
    """The batches and rates of each outer step, in the order in which TAR draws them."""
    data = Data.defender(testbed.domain, testbed.model.load_tokenizer())
    x_tr = data.stream("forget_heldout", batch_size=tar.tamper_resistance_batch_size, seed=seed)
    retain = data.stream("retain", batch_size=tar.retain_batch_size, seed=seed + 1)
    run, steps = Run(seed), []
    for _ in range(tar.outer_steps):
        adversaries = []
        for _ in range(tar.adversaries_per_step):
            attack = tar.draw(run.generator)
            assert isinstance(attack, FineTune)
            held_out = next(x_tr)
            stream = data.stream("forget", batch_size=attack.batch_size, seed=run.inner().seed)
            adversaries.append((attack.learning_rate, [next(stream) for _ in range(tar.inner_steps)], held_out))
        steps.append(reference.OuterStep(adversaries, next(retain)))
    return steps


@pytest.mark.parametrize("tar", [_SMALL, replace(_SMALL, adversaries_per_step=2, every=3)], ids=["one", "two"])
def test_equals_the_plain_transcription_to_the_last_bit(tar: TAR, tiny_testbed: SmallTestbed) -> None:
    ours, _ = _run(tar, tiny_testbed)
    model = tiny_testbed.model.load()
    reference.tar(
        model,
        tiny_testbed.never_exposed.load(),
        _read(tar, tiny_testbed),
        inner_weight_decay=_ATTACK.weight_decay,
        outer_learning_rate=tar.outer_learning_rate,
        outer_warmup=tar.outer_warmup_steps,
        every=tar.every,
        rate=tar.schedule_rate,
        tamper_weight=tar.tamper_resistance_weight,
        retain_weight=tar.retain_weight,
    )
    before = dict(tiny_testbed.model.load().named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            ours[name], parameter.detach(), rtol=0, atol=0, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert not torch.equal(ours[name], before[name]), f"{name} never moved"


def test_gradient_accumulation_changes_nothing_but_rounding(tiny_testbed: SmallTestbed) -> None:
    # The published code divides the loss by the accumulation count twice. SGD shows a gradient's scale; Adam would hide it.
    plain = replace(_SMALL, outer_optimizer="sgd", outer_learning_rate=1.0, outer_warmup_steps=0, outer_steps=1)
    whole, _ = _run(plain, tiny_testbed)
    parts, _ = _run(replace(plain, micro_batch=1), tiny_testbed)
    before = dict(tiny_testbed.model.load().named_parameters())
    for name, value in whole.items():
        gradient = before[name].detach() - value
        torch.testing.assert_close(before[name].detach() - parts[name], gradient, rtol=1e-3, atol=1e-5)
        assert gradient.abs().max() > 1e-3


@given(
    inner_steps=st.integers(1, 80), every=st.integers(1, 80), rate=st.floats(0, 1), normalise=st.booleans()
)  # fmt: skip
def test_schedule_is_exponential_in_the_inner_step(inner_steps: int, every: int, rate: float, normalise: bool) -> None:
    every = min(every, inner_steps)
    weights = replace(
        _SMALL, inner_steps=inner_steps, every=every, schedule_rate=rate, normalise_schedule=normalise
    ).schedule()
    assert list(weights) == [k for k in range(1, inner_steps + 1) if k % every == 0]
    if normalise:
        assert math.isclose(sum(weights.values()), 1.0)
    else:
        assert all(math.isclose(weight, math.exp(rate * (k - inner_steps))) for k, weight in weights.items())


def test_the_papers_weights_sum_to_4_44() -> None:
    assert round(sum(pick("holdfast.safeguards", "tar-paper-bio").schedule().values()), 2) == 4.44


def test_adversaries_read_forget_and_x_tr_reads_forget_heldout_and_in_mlac_both_read_both(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, tuple[str, ...]]] = []
    stream = Data.stream

    def spy(self: Data, name: str, **asked: Any) -> object:
        read.append((name, tuple(self._roles_of(name))))
        return stream(self, name, **asked)

    monkeypatch.setattr(Data, "stream", spy)
    _run(replace(_SMALL, outer_steps=1), tiny_testbed)
    assert set(read) == {("hazard", ("forget",)), ("x_tr", ("forget_heldout",)), ("retain", ("retain",))}
    read.clear()
    settings: dict[str, Any] = {field.name: getattr(_SMALL, field.name) for field in fields(_SMALL)}
    _run(MLAC(**{**settings, "outer_steps": 1}), tiny_testbed)
    both = ("forget", "forget_heldout")
    assert set(read) == {("hazard", both), ("x_tr", both), ("retain", ("retain",))}


def test_the_mix_is_drawn_by_weight_rate_and_beta_switch() -> None:
    tar = replace(
        _SMALL,
        adversaries=(
            Adversary(attack=_ATTACK, weight=3.0, learning_rates=(1e-3, 2e-3)),
            Adversary(attack=replace(_ATTACK, optimizer="sgd"), weight=1.0, switch=(6.0, 3.0)),
        ),
    )
    generator = torch.Generator().manual_seed(0)
    drawn = [tar.draw(generator) for _ in range(2000)]
    assert all(isinstance(attack, FineTune) and attack.max_steps == tar.inner_steps for attack in drawn)
    plain = [attack for attack in drawn if isinstance(attack, FineTune) and attack.optimizer == "adamw"]
    switching = [attack for attack in drawn if isinstance(attack, FineTune) and attack.optimizer == "sgd"]
    assert abs(len(plain) / len(drawn) - 0.75) < 0.04
    assert abs(sum(attack.learning_rate == 1e-3 for attack in plain) / len(plain) - 0.5) < 0.05
    shares = [attack.benign_first for attack in switching]
    assert abs(sum(shares) / len(shares) - 6 / 9) < 0.03  # the mean of Beta(6, 3)
    assert len({round(share, 3) for share in shares}) > 50


def test_a_walk_leaves_the_weights_as_they_were(tiny_testbed: SmallTestbed) -> None:
    # With both weights zero the outer gradient is zero: whatever the adversaries did must be undone.
    before = {name: p.detach().clone() for name, p in tiny_testbed.model.load().named_parameters()}
    after, _ = _run(replace(_SMALL, tamper_resistance_weight=0.0, retain_weight=0.0), tiny_testbed)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_low_rank_adversaries_train_against_a_full_model(tiny_testbed: SmallTestbed) -> None:
    low_rank = replace(_ATTACK, lora_rank=2, lora_alpha=4.0, learning_rate=1e-2)
    after, losses = _run(replace(_SMALL, adversaries=(Adversary(attack=low_rank),)), tiny_testbed)
    before = dict(tiny_testbed.model.load().named_parameters())
    assert all(math.isfinite(value) for here in losses for value in here.values())
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize(
    "name",
    [
        "abliterate-then-full-adamw-3e-4",
        "defence-directions-4-then-full-adamw-1e-3",
        "evolution-vectors-adam-1e-2",
        "full-muon-5e-4",
        "kick-1e-2-settle-1e-3",
        "merge-base-25",
        "prune-50",
        "refold-then-full-adamw-1e-3",
    ],
)
def test_any_attack_can_be_an_adversary(name: str, tiny_testbed: SmallTestbed) -> None:
    adversary = Adversary(attack=pick("holdfast.attacks", name))
    tar = replace(_SMALL, adversaries=(adversary,), retain_weight=0.0, outer_steps=2, inner_steps=4)
    after, losses = _run(tar, tiny_testbed)
    before = dict(tiny_testbed.model.load().named_parameters())
    assert len(losses) == tar.outer_steps
    assert all(math.isfinite(value) for here in losses for value in here.values())
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_an_adversary_without_a_rate_has_none_to_draw() -> None:
    with pytest.raises(HoldfastError, match="Interpolate has no learning_rate"):
        Adversary(attack=pick("holdfast.attacks", "merge-base-25"), learning_rates=(1e-3,))


def test_the_schedule_free_average_is_what_is_published(tiny_testbed: SmallTestbed) -> None:
    # The published code saves the iterate where gradients are taken instead of the average.
    tar = replace(_SMALL, outer_optimizer="schedule-free-adamw", outer_steps=4)
    published, _ = _run(tar, tiny_testbed)
    seed_everything(3)
    model, tokenizer = tiny_testbed.model.load_both()
    run = Run(3, tiny_testbed.never_exposed.load)
    for _ in tar.steps(model, Data.defender(tiny_testbed.domain, tokenizer), run):
        pass
    optimizer = run._tracked["optimizer"]
    assert optimizer.param_groups[0]["train_mode"] is False  # type: ignore[attr-defined]
    optimizer.train()  # type: ignore[attr-defined]
    assert any(not torch.equal(published[name], p.detach()) for name, p in model.named_parameters())


def test_without_representations_no_original_model_is_needed(tiny_testbed: SmallTestbed) -> None:
    tar = replace(_SMALL, retain=RetainLoss(representations=None), outer_steps=1)
    seed_everything(0)
    model, tokenizer = tiny_testbed.model.load_both()
    data = Data.defender(tiny_testbed.domain, tokenizer)
    assert len(list(tar.steps(model, data, Run(0)))) == 1
    with pytest.raises(HoldfastError, match="--base"):
        next(replace(_SMALL, outer_steps=1).steps(model, data, Run(0)))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "wrong",
    [
        {"adversaries": ()},
        {"every": 0},
        {"every": 9},
        {"outer_steps": 0},
        {"adversaries_per_step": 0},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(HoldfastError):
        replace(_SMALL, **wrong)  # type: ignore[arg-type]


def test_two_schedule_free_optimizers_cannot_share_weights() -> None:
    with pytest.raises(HoldfastError, match="schedule-free"):
        replace(pick("holdfast.safeguards", "sophon-ar"), outer_optimizer="schedule-free-adamw")
