"""Mixed precision rounds products and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.core.types import Precision
from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.mixed import exact
from holdfast.engine.session import open_session
from holdfast.engine.stream import hidden_states, states_alone
from holdfast.engine.walk import walk
from holdfast.evals.gradient_check import GradientCheck
from holdfast.runs.stages import Recipe, build
from tests.conftest import SmallTestbed

IDS = torch.arange(3, 43).view(4, 10)


def loss_and_gradient(model: PreTrainedModel) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_products_are_rounded_and_weights_gradients_and_logits_are_not(tiny_testbed: SmallTestbed) -> None:
    plain, mixed = tiny_testbed.model.load(), tiny_testbed.model.load(precision="mixed")
    products = []
    mixed.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: products.append(output.dtype)
    )
    (loss, gradient), (rounded_loss, rounded) = loss_and_gradient(plain), loss_and_gradient(mixed)
    assert products == [torch.bfloat16]
    assert {p.dtype for p in mixed.parameters()} == {rounded.dtype} == {torch.float32}
    assert mixed(input_ids=IDS).logits.dtype == torch.float32
    assert 0 < abs(rounded_loss - loss) < 0.05
    assert torch.cosine_similarity(rounded, gradient, dim=0) > 0.98
    with exact(mixed):
        assert torch.equal(mixed(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_a_pass_that_ends_early_leaves_no_autocast_behind(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load(precision="mixed")
    states = hidden_states(model, IDS)[1]
    for chosen in (None, (1,)):
        alone = states_alone(model, IDS, chosen)
        assert not torch.is_autocast_enabled("cpu")
        picked = states if chosen is None else [states[index] for index in chosen]
        assert all(torch.equal(left.float(), right.float()) for left, right in zip(picked, alone, strict=True))

    def broken(*_: object) -> None:
        raise ValueError("broken")

    hook = decoder_layers(model)[0].register_forward_hook(broken)
    with pytest.raises(ValueError, match="broken"):
        model(input_ids=IDS)
    hook.remove()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(hidden_states(model, IDS)[1][-1], states[-1])


def moved(testbed: SmallTestbed, precision: Precision) -> float:
    """The share of weights that 64 updates at 2e-6 move."""
    options = Options(precision=precision)
    session = open_session(testbed.model, testbed.domain, "attacker", 0, options)
    before = [weight.detach().clone() for weight in session.model.parameters()]
    walk(session, FineTune(learning_rate=2e-6, max_steps=64, batch_size=4))
    pairs = list(zip(before, session.model.parameters(), strict=True))
    return sum(int((old != new).sum()) for old, new in pairs) / sum(old.numel() for old, _ in pairs)


def test_small_updates_are_kept(tiny_testbed: SmallTestbed) -> None:
    whole, mixed = moved(tiny_testbed, "float32"), moved(tiny_testbed, "mixed")
    assert mixed > 0.95 * whole


def test_it_is_part_of_the_identity_and_what_is_saved_is_float32(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    stage = ("random-mapping", replace(pick("holdfast.safeguards", "random-mapping"), outer_steps=2))
    recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=(stage,), seed=0)
    mixed = replace(recipe, options=Options(precision="mixed"))
    assert mixed.keys() != recipe.keys()
    folder = build(mixed, tmp_path / "out")
    assert {p.dtype for p in Checkpoint(str(folder)).load().parameters()} == {torch.float32}


def test_the_gradient_check_runs_without_rounding(tiny_testbed: SmallTestbed) -> None:
    check = GradientCheck(rows=8).prepare(tiny_testbed.model.load_tokenizer(), tiny_testbed.domain)
    plain, mixed = (check(tiny_testbed.model.load(precision=precision)) for precision in ("float32", "mixed"))
    assert [score.value for score in plain] == [score.value for score in mixed]
