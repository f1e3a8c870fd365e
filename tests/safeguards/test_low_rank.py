"""An outer loop that trains LoRA's factors alone, and is merged into the weights at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from holdfast.attacks.finetune import FineTune
from holdfast.core.model_size import count_weights
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.memory import plan_of_stages
from holdfast.runs.stages import Recipe, build
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.tar import TAR
from holdfast.testing import SAFEGUARD
from holdfast.testing.bench import Bench
from tests.conftest import SmallTestbed

RANK = 2
WHOLE = TAR(
    outer_steps=3,
    adversaries=(Adversary(attack=FineTune(batch_size=4)), Adversary(attack=FineTune(batch_size=4, lora_rank=5))),
    inner_steps=4,
    tamper_resistance_batch_size=4,
    retain_batch_size=4,
    outer_learning_rate=1e-2,
    outer_warmup_steps=0,
    persistent_adversaries=1,
)
LOW = replace(WHOLE, lora_rank=RANK)


@pytest.mark.parametrize("rule", SAFEGUARD, ids=lambda rule: rule.__name__)
def test_it_keeps_what_every_safeguard_keeps(
    rule: Callable[[Safeguard, Bench], None], tiny_testbed: SmallTestbed
) -> None:
    rule(LOW, tiny_testbed)


def test_the_saved_model_differs_from_the_first_by_that_rank_in_every_linear_map(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=(("low", LOW),))
    before, after = tiny_testbed.model.load(), Checkpoint(str(build(recipe, tmp_path / "out"))).load()
    assert type(after) is type(before), "nothing of peft is left"
    maps, first = {found.name for found in linear_maps(before)}, dict(before.named_parameters())
    for name, weight in after.named_parameters():
        change = (weight - first[name]).detach()
        if name in maps:
            values = torch.linalg.svdvals(change)
            assert values[RANK - 1] > 1e-6, f"{name} was trained"
            assert values[RANK] < 1e-3 * values[0], f"{name} changed by a higher rank"
        else:
            assert not change.any(), f"{name} is no linear map"


def test_only_factors_have_gradients_states_and_copies(tiny_testbed: SmallTestbed) -> None:
    """What is left of the model's size are the weights and the original."""
    [plan] = plan_of_stages(Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=(("low", LOW),)))
    weights = 4 * count_weights(tiny_testbed.model.folder)
    for part, whole in {"gradients": 1, "optimizers": 4, "copies of weights": 1, "sum of gradients": 1}.items():
        assert plan.host.get(part, 0) < 0.3 * whole * weights, part
    assert plan.host["references"] == pytest.approx(weights, rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HoldfastError, match="lora_rank"):
        replace(WHOLE, lora_rank=-1)
    # The copy that puts weights back has the factors alone, and an edit would stay in the weights.
    with pytest.raises(HoldfastError, match="each has to fine-tune; leave lora_rank out"):
        replace(LOW, adversaries=(Adversary(attack=pick("holdfast.attacks", "int8")),))
