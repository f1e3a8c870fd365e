"""Rows that go through the model at once: microbatches give the gradient of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.attacks.break_then_repair import BreakThenRepair
from holdfast.attacks.distil import Distil
from holdfast.attacks.evolution import Evolution
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.head_offsets import HeadOffsets
from holdfast.attacks.latent import LatentPGD
from holdfast.attacks.preference import PreferenceTuning
from holdfast.core.options import Options
from holdfast.core.types import HoldfastError
from holdfast.engine.run import Run
from holdfast.engine.walk import drive
from holdfast.runs.stages import Recipe, build
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.tar import TAR
from tests.attacks.walk import fresh
from tests.campaign.test_campaign import cell_of
from tests.conftest import SmallTestbed

TUNING = FineTune(max_steps=1, batch_size=6, learning_rate=1e-3)


@pytest.mark.parametrize(
    "attack",
    [
        replace(TUNING, benign_share=0.5),
        replace(TUNING, lora_rank=2, lora_alpha=4.0),
        BreakThenRepair(max_steps=2, kick_steps=1, batch_size=6, kl_weight=1.0, benign_share=0.5),
        LatentPGD(max_steps=1, batch_size=6),
        Evolution(max_steps=1, batch_size=6, pairs=2, sigma=1e-2),
        PreferenceTuning(max_steps=1, batch_size=6),
        HeadOffsets(max_steps=1, batch_size=6, probes=1),
        Distil(max_steps=1, batch_size=12, warmup_steps=0),
    ],
    ids=["full", "low-rank", "kick and settle", "latent", "evolution", "preference", "heads", "distillation"],
)
def test_microbatches_give_the_gradient_of_the_whole_batch(attack: Any, tiny_testbed: SmallTestbed) -> None:
    def last_step(micro_batch: int | None) -> tuple[torch.Tensor, float, int]:
        torch.manual_seed(0)
        model, data = fresh(tiny_testbed)
        attack.prepare(model)
        seen: list[int] = []
        hook = model.register_forward_pre_hook(
            lambda module, inputs, named: seen.append(len(named["input_ids"])), with_kwargs=True
        )
        run, loss = Run(3, micro_batch=micro_batch), 0.0
        for step, value in drive(attack.steps(model, data, run), run):
            loss = value
            rows = max(seen[-2 if step == 1 else 0 :])
        hook.remove()
        gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
        return torch.cat(gradients), loss, rows

    (whole, loss, rows), (parts, summed, few) = last_step(None), last_step(2)
    assert (rows, few) == (6, 2)
    assert summed == pytest.approx(loss, rel=1e-5)
    # Evolution's is a difference of losses, in which their rounding is large.
    least = 2e-3 if isinstance(attack, Evolution) else 1e-5
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=least * float(whole.abs().max()))
    assert whole.abs().max() > 0


def test_the_bound_holds_for_safeguards_and_adversaries(
    tiny_testbed: SmallTestbed, tmp_path: Any, monkeypatch: Any
) -> None:
    tar = TAR(
        outer_steps=1,
        inner_steps=2,
        every=1,
        adversaries=(Adversary(attack=TUNING),),
        retain_batch_size=5,
        tamper_resistance_batch_size=5,
    )
    recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=[("tar", tar)])
    bounded = replace(recipe, options=Options(micro_batch=2))
    assert bounded.keys() != recipe.keys()
    assert replace(recipe, options=Options(micro_batch=None)).keys() == recipe.keys()
    rows: list[int] = []
    model = type(tiny_testbed.model.load())
    forward = model.forward

    def seen(self: Any, *inputs: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():
            rows.append(len(named["input_ids"]))
        return forward(self, *inputs, **named)

    monkeypatch.setattr(model, "forward", seen)
    build(bounded, tmp_path / "out")
    assert max(rows) == 2
    assert len(rows) >= 2 * 3 + 3 + 3, "two steps of an adversary, x_tr and the retain rows"


def test_the_bound_is_part_of_the_identity_only_where_it_changes_a_number(tiny_testbed: SmallTestbed) -> None:
    cell = cell_of(tiny_testbed)
    assert "micro_batch" not in cell.identity()
    bounded = replace(cell, options=Options(micro_batch=2))
    assert bounded.identity()["micro_batch"] == 2
    untouched = replace(bounded, attack=None)
    assert "micro_batch" not in untouched.identity(), "nothing is trained"
    with pytest.raises(HoldfastError, match="at least 1"):
        Options(micro_batch=0)
