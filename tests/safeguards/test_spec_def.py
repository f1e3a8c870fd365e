"""SpecDef: the same function, other singular values, and a control that does what a control is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.adjacent import adjacent_maps
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.safeguards.spec_def import SpecDef
from tests.conftest import SmallTestbed


def defended(testbed: SmallTestbed, **settings: Any) -> tuple[PreTrainedModel, dict[str, float]]:
    """The testbed's model after SpecDef, and what its last step yielded."""
    seed_everything(0)
    model, tokenizer = testbed.model.load_both()
    run = Run(0, testbed.model.load)
    safeguard = SpecDef(**settings)
    steps = drive(safeguard.steps(model, Data.defender(testbed.domain, tokenizer), run), run)
    return model, dict([losses for _, losses in steps][-1])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_function_stays_to_a_ten_thousandth(steps: int, small_testbed: SmallTestbed) -> None:
    model, losses = defended(small_testbed, outer_steps=steps)
    ids = torch.arange(60).view(4, 15)
    with torch.no_grad():
        difference = (model(input_ids=ids).logits - small_testbed.model.load()(input_ids=ids).logits).abs().max()
    assert difference < 1e-4
    assert losses["function change"] < 1e-4


def test_the_scaling_of_units_is_exact(small_testbed: SmallTestbed) -> None:
    """Rows and columns times a power of two, and nothing else."""
    model, old = defended(small_testbed)[0], small_testbed.model.load()
    for layer, before in zip(model.model.layers, old.model.layers, strict=True):
        scale = (layer.mlp.up_proj.weight / before.mlp.up_proj.weight)[:, 0].abs().detach()
        assert sorted(set(scale.tolist())) == [1.0, 8192.0]
        assert int((scale > 1).sum()) == 25
        norms = before.mlp.up_proj.weight.norm(dim=1)
        assert norms[scale > 1].min() >= norms[scale == 1].max()
        down = before.mlp.down_proj.weight / scale
        assert torch.equal(layer.mlp.down_proj.weight.abs(), down.abs())


@pytest.mark.parametrize("steps", [1, 2])
def test_the_largest_singular_values_of_the_heads_are_multiplied(steps: int, small_testbed: SmallTestbed) -> None:
    model, _ = defended(small_testbed, factor=1000.0, singular_values=7, outer_steps=steps)
    pairs = zip(adjacent_maps(model), adjacent_maps(small_testbed.model.load()), strict=True)
    for here, there in pairs:
        now, before = (
            torch.linalg.svdvals(pair.written()).flatten().sort(descending=True).values for pair in (here, there)
        )
        before[:7] *= 1000.0
        torch.testing.assert_close(now, before, rtol=1e-3, atol=1e-5)


def test_it_stands_against_plain_fine_tuning_and_falls_to_folding(small_testbed: SmallTestbed) -> None:
    """What the control is there to show: the attacker's loss on the undefended model is within reach of who folds."""

    def losses(model: PreTrainedModel, name: str) -> list[float]:
        attack = pick("holdfast.attacks", name)
        data = Data.attacker(small_testbed.domain, small_testbed.model.load_tokenizer())
        run = Run(1)
        held = [loss for _, loss in drive(replace(attack, max_steps=40).steps(model, data, run), run)]
        ask = MultipleChoice(questions="benign_in_retain").prepare(data.tokenizer, small_testbed.domain)
        return [held[-1], ask(model)[0].value]

    plain, ability = losses(small_testbed.model.load(), "full-adamw-1e-3")
    stuck, ruined = losses(defended(small_testbed)[0], "full-adamw-1e-3")
    folded, kept = losses(defended(small_testbed)[0], "refold-then-full-adamw-1e-3")
    assert stuck > plain + 0.1
    assert ruined < ability - 0.2
    assert folded < plain + 0.05
    assert kept > ability - 0.05


@pytest.mark.parametrize("wrong", [{"factor": 0.0}, {"singular_values": 0}, {"outer_steps": 0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError):
        SpecDef(**wrong)
