"""RepSelect against a plain transcription: LoRA by hand, exact singular values, and no row but the forget rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from holdfast.core.options import Options
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import mlp_maps
from holdfast.engine.data import UNLABELLED, Batch
from holdfast.engine.session import open_session
from holdfast.safeguards.rep_select import RepSelect, damp
from tests.conftest import SmallTestbed
from tests.families.small import build


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_largest_components_become_the_smallest_and_the_rest_stays(seed: int, components: int) -> None:
    torch.manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, 6)).Q for size in (9, 7))
    sizes = torch.tensor([32.0, 16.0, 8.0, 4.0, 2.0, 1.0])
    damped = damp(left * sizes @ right.mT, components)
    floor = sizes[components - 1]
    expected = torch.where(torch.arange(6) < components, floor**2 / sizes, sizes)
    torch.testing.assert_close(damped, left * expected @ right.mT, rtol=1e-3, atol=1e-3)


def test_a_gradient_of_nothing_stays_nothing() -> None:
    assert not damp(torch.zeros(4, 3), 2).any()


def loss_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch.input_ids).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, batch.labels[:, 1:].flatten(), ignore_index=UNLABELLED)


def plainly(
    plugin: RepSelect, model: PreTrainedModel, learned: list[Batch], seen: list[Batch], seed: int
) -> list[torch.Tensor]:
    """The MLPs' weights after one update."""
    weights = [found.weight for found in mlp_maps(model)]
    origin = [weight.detach().clone() for weight in weights]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        down = [torch.empty(plugin.lora_rank, weight.shape[1]) for weight in weights]
        for factor in down:
            torch.nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    up = [torch.zeros(weight.shape[0], plugin.lora_rank) for weight in weights]
    for batch in learned:
        slopes = torch.autograd.grad(loss_of(model, batch), weights)
        steps = [(slope @ a.mT, b.mT @ slope) for slope, a, b in zip(slopes, down, up, strict=True)]
        for a, b, (for_b, for_a) in zip(down, up, steps, strict=True):
            a -= plugin.lora_learning_rate * for_a
            b -= plugin.lora_learning_rate * for_b
        with torch.no_grad():
            for weight, first, a, b in zip(weights, origin, down, up, strict=True):
                weight.copy_(first + b @ a)
    total = [torch.zeros_like(weight) for weight in weights]
    for batch in seen:
        for place, slope in zip(total, torch.autograd.grad(loss_of(model, batch), weights), strict=True):
            place += slope
    damped = []
    for gradient in total:
        u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
        keep = plugin.components
        s = torch.where(torch.arange(len(s)) < keep, s[keep - 1] ** 2 / s, s)
        damped.append(u * s @ vh)
    length = torch.stack([part.norm() for part in damped]).norm()
    size = torch.stack([part.norm() for part in origin]).norm()
    return [first + plugin.learning_rate * size / length * part for first, part in zip(origin, damped, strict=True)]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_an_update_is_the_sources(rate: float, tiny_testbed: SmallTestbed) -> None:
    plugin = RepSelect(outer_steps=1, components=3, forget_batch_size=16, lora_rank=2, lora_learning_rate=rate)
    session = open_session(tiny_testbed.model, tiny_testbed.domain, "defender", 5, Options())
    before = {name: weight.clone() for name, weight in session.model.state_dict().items()}
    list(plugin.steps(session.model, session.data, session.run))
    other = tiny_testbed.model.load()
    pooled = session.data.renamed(forget=("forget", "forget_heldout"))
    stream = pooled.stream("forget", batch_size=16, seed=5)
    count = math.ceil(len(stream.rows) / 16)
    read = [next(stream) for _ in range(2 * count)]
    # Both passes go through every row once, in an order of their own.
    learned, seen = read[:count], read[count:]
    if rate == 0.0:
        seen = learned
    expected = plainly(plugin, other, learned if rate else [], seen, 5)
    for found, weight in zip(mlp_maps(session.model), expected, strict=True):
        torch.testing.assert_close(found.weight.detach(), weight, rtol=1e-3, atol=1e-5)
    edited = {found.name for found in mlp_maps(session.model)}
    assert edited
    for name, weight in session.model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in edited), name


def test_experts_are_edited_each_for_itself_and_routers_are_not() -> None:
    model = build("qwen3_moe", 40)
    names = {found.name for found in mlp_maps(model)}
    assert any("experts" in name for name in names)
    assert not any(name.endswith("gate.weight") for name in names)


@pytest.mark.parametrize("changes", [{"components": 0}, {"learning_rate": 0.0}, {"lora_learning_rate": -1.0}])
def test_settings_without_a_meaning_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(HoldfastError, match="must"):
        replace(RepSelect(), **changes)
