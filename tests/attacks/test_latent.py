"""Embedding and latent attacks: what moves, how far, and where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.attacks.latent import LatentPGD, SoftStartToken, _step
from holdfast.core.types import HoldfastError
from holdfast.engine.run import Run
from holdfast.engine.stream import residual_stream
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed

IDS = torch.arange(60).view(4, 15)


@pytest.mark.parametrize("prepared", [True, False])
def test_the_start_token_s_embedding_alone_moves_by_a_size_that_falls(
    prepared: bool, tiny_testbed: SmallTestbed
) -> None:
    model, data = fresh(tiny_testbed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    start, held = data.tokenizer.bos_token_id, before["model.embed_tokens.weight"]
    others = torch.cat([held[:start], held[start + 1 :]])
    attack = SoftStartToken(max_steps=4, batch_size=4, step_size=0.5)
    if prepared:
        attack.prepare(model)
    last = held[start]
    for step, _ in enumerate(attack.steps(model, data, Run(0))):
        now = model.get_input_embeddings().weight[start].detach().clone()
        size = 0.5 * (1 - step / 4) * others.square().mean().sqrt()
        torch.testing.assert_close((now - last).abs(), size.expand(96), rtol=1e-4, atol=1e-6)
        last = now
    for name, parameter in model.named_parameters():
        changed = (parameter != before[name]).any(-1)
        assert changed.nonzero().flatten().tolist() == ([start] if name == "model.embed_tokens.weight" else [])


def test_without_a_start_token_of_its_own_there_is_nothing_to_attack(tiny_testbed: SmallTestbed) -> None:
    for spoil, says in (
        (
            lambda model, tokenizer: setattr(model.lm_head, "weight", model.model.embed_tokens.weight),
            "output embeddings",
        ),
        (lambda model, tokenizer: setattr(tokenizer, "bos_token", None), "puts no start token"),
    ):
        model, data = fresh(tiny_testbed)
        held = data.tokenizer.bos_token
        try:
            spoil(model, data.tokenizer)
            with pytest.raises(HoldfastError, match=says):
                next(SoftStartToken().steps(model, data, Run(0)))
        finally:
            data.tokenizer.bos_token = held


def test_prepare_adds_biases_that_change_nothing_and_nothing_else_is_trainable(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        LatentPGD(depths=(0.0, 0.9)).prepare(model)
        assert torch.equal(model(input_ids=IDS).logits, before)
    free = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert free == ["model.layers.0.mlp.down_proj.bias", "model.layers.2.mlp.down_proj.bias"]


def test_every_token_moves_by_one_vector_as_long_as_the_radius_allows(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    attack = LatentPGD(depths=(0.5,), radius=0.2, step_size=0.4, max_steps=6, batch_size=4)
    rows = [row.ids for row in data.stream("hazard", batch_size=4, seed=0).rows[:4]]
    with torch.no_grad():
        norms = torch.cat([residual_stream(model, torch.tensor([ids]))[1][1][0].norm(dim=-1) for ids in rows])
        _, before = residual_stream(model, IDS)
    attack.prepare(model)
    lengths = []
    for _ in attack.steps(model, data, Run(0)):
        bias = model.model.layers[1].mlp.down_proj.bias.detach().clone()
        lengths.append(float(bias.norm() / norms.median()))
    assert lengths[0] == pytest.approx(0.2 * 0.4, rel=1e-4)
    assert max(lengths) == pytest.approx(0.2, rel=1e-4)
    with torch.no_grad():
        _, moved = residual_stream(model, IDS)
    assert torch.equal(moved[0], before[0])
    torch.testing.assert_close(moved[1] - before[1], bias.expand(4, 15, 96), rtol=1e-4, atol=1e-5)


def test_a_bias_that_is_there_is_moved_from_where_it_was_and_needs_no_preparation(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    writer = model.model.layers[0].mlp.down_proj
    writer.bias = nn.Parameter(torch.linspace(-2, 2, 96))
    with torch.no_grad():
        ids = torch.tensor([data.stream("hazard", batch_size=1, seed=0).rows[0].ids])
        norm = residual_stream(model, ids)[1][0][0].norm(dim=-1).median()
    attack = LatentPGD(depths=(0.0,), radius=0.1, step_size=1.0, max_steps=3, batch_size=1)
    for _ in attack.steps(model, data, Run(0)):
        away = (writer.bias.detach() - torch.linspace(-2, 2, 96)).norm()
        assert 0 < away <= 0.1 * norm * (1 + 1e-4)


def test_inside_a_safeguard_it_is_refused_where_there_are_no_biases(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    with pytest.raises(HoldfastError, match=r"no biases in its MLPs .* cannot be an adversary"):
        next(LatentPGD().steps(model, data, Run(0)))


vectors = st.lists(st.floats(-100, 100), min_size=3, max_size=3).map(torch.tensor)


@given(vectors, vectors, vectors, st.floats(0.01, 10))
def test_a_step_ends_within_the_ball_and_is_whole_where_it_can_be(
    centre: torch.Tensor, push: torch.Tensor, held: torch.Tensor, radius: float
) -> None:
    ended = _step(centre, torch.tensor(radius), push, held)
    away = (held + push - centre).norm()
    assert (ended - centre).norm() <= radius * (1 + 1e-4) + 1e-4
    if away < radius:
        torch.testing.assert_close(ended, held + push, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("attack", "changes", "says"),
    [
        (SoftStartToken, {"max_steps": 0}, "max_steps must be at least 1"),
        (SoftStartToken, {"batch_size": 0}, "batch_size must be at least 1"),
        (LatentPGD, {"step_size": 0.0}, "step_size must be above 0"),
        (LatentPGD, {"radius": -1.0}, "radius must be above 0"),
        (LatentPGD, {"depths": ()}, "depths must be one or more shares"),
        (LatentPGD, {"depths": (1.0,)}, "depths must be one or more shares"),
    ],
)
def test_settings_that_make_no_sense_are_refused(attack: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        attack(**changes)
