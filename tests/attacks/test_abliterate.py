"""Abliteration: what is taken out, of which matrices, and how the search chooses."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.attacks.abliterate import Abliterate, _batch, _looked_at, _states
from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers, residual_stream, residual_writers
from holdfast.engine.data import UNLABELLED, Data
from holdfast.engine.losses import distillation_loss, next_token_loss
from holdfast.engine.run import Run
from tests.attacks.walk import fresh, walk, weights
from tests.conftest import SmallTestbed

IDS = torch.arange(60).view(4, 15)


def after(attack: Abliterate, testbed: SmallTestbed) -> PreTrainedModel:
    model, data = fresh(testbed)
    for _ in attack.steps(model, data, Run(3)):
        pass
    return model


def direction(testbed: SmallTestbed, layer: int, rows: int) -> torch.Tensor:
    """The unit direction at a layer's output, row by row."""
    model, data = fresh(testbed)
    means = []
    for name in ("hazard", "benign"):
        stream = data.stream(name, batch_size=1, seed=0)
        taken = stream.take(len(stream.rows))
        prompts = [row for row in taken if row.labels[0] == UNLABELLED]
        states = []
        for row in (prompts or taken)[:rows]:
            with torch.no_grad():
                state = residual_stream(model, torch.tensor([row.ids]))[1][layer][0]
            first = next(i for i, label in enumerate(row.labels) if label != UNLABELLED)
            states.append(state[first - 1] if prompts else state.mean(0))
        means.append(torch.stack(states).mean(0))
    return nn.functional.normalize(means[0] - means[1], dim=0)


def components(model: PreTrainedModel, along: torch.Tensor) -> torch.Tensor:
    """How far every token's hidden state lies along a direction: after the embedding and after every layer."""
    with torch.no_grad():
        _, outputs = residual_stream(model, IDS)
        return torch.stack([model.get_input_embeddings()(IDS), *outputs]) @ along


@pytest.mark.parametrize("kind", ["tiny_testbed", "tiny_refusal_testbed"])
def test_no_hidden_state_has_any_of_the_direction_left(kind: str, request: pytest.FixtureRequest) -> None:
    testbed: SmallTestbed = request.getfixturevalue(kind)
    along = direction(testbed, layer=1, rows=20)
    assert components(fresh(testbed)[0], along).abs().max() > 1e-3
    assert components(after(Abliterate(rows=20), testbed), along).abs().max() < 1e-5


def test_a_weight_takes_out_its_share(tiny_testbed: SmallTestbed) -> None:
    along, before = direction(tiny_testbed, layer=0, rows=20), fresh(tiny_testbed)[0]
    for weight in (0.25, 2.0):
        model = after(Abliterate(rows=20, depth=0.0, weight=weight), tiny_testbed)
        for layer, was in zip(decoder_layers(model), decoder_layers(before), strict=True):
            for writer, old in zip(residual_writers(layer), residual_writers(was), strict=True):
                torch.testing.assert_close(
                    along @ writer.weight, (1 - weight) * along @ old.weight, atol=1e-6, rtol=1e-4
                )


def test_with_a_direction_for_each_layer_its_own_writers_lose_it_and_the_embedding_stays(
    tiny_testbed: SmallTestbed,
) -> None:
    before, model = fresh(tiny_testbed)[0], after(Abliterate(directions="per-layer", rows=20), tiny_testbed)
    for index, layer in enumerate(decoder_layers(model)):
        along = direction(tiny_testbed, index, rows=20)
        assert all((along @ writer.weight).abs().max() < 1e-5 for writer in residual_writers(layer))
    changed = [
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if (new != old).any()
    ]
    assert changed == [
        f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("self_attn.o_proj", "mlp.down_proj")
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_several_directions_cost_every_writer_their_rank(count: int, tiny_testbed: SmallTestbed) -> None:
    before = fresh(tiny_testbed)[0]
    model = after(Abliterate(directions="several", count=count, rows=20), tiny_testbed)
    for layer, was in zip(decoder_layers(model), decoder_layers(before), strict=True):
        for writer, old in zip(residual_writers(layer), residual_writers(was), strict=True):
            assert torch.linalg.matrix_rank((writer.weight - old.weight).detach(), rtol=1e-3) == count


def test_biases_lose_the_direction_too(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    writer = residual_writers(model.model.layers[1])[1]
    writer.bias = nn.Parameter(torch.linspace(-1, 1, 96))
    before = writer.bias.detach().clone()
    for _ in Abliterate(rows=20).steps(model, data, Run(3)):
        pass
    lost = before - writer.bias.detach()
    along = nn.functional.normalize(lost, dim=0)
    assert lost.norm() > 1e-4
    assert abs(along @ writer.bias.detach()) < 1e-5
    assert (along @ writer.weight).abs().max() < 1e-5


def test_each_edit_without_fine_tuning_finds_its_directions_anew(tiny_testbed: SmallTestbed) -> None:
    model = after(Abliterate(max_steps=2, rows=20), tiny_testbed)
    first = direction(tiny_testbed, layer=1, rows=20)
    assert components(model, first).abs().max() < 1e-5
    change = model.model.layers[0].mlp.down_proj.weight - fresh(tiny_testbed)[0].model.layers[0].mlp.down_proj.weight
    assert torch.linalg.matrix_rank(change.detach(), rtol=1e-3) == 2


def cost(model: PreTrainedModel, before: PreTrainedModel, data: Data) -> float:
    """The attacker's own objective on the first fifth of 20 rows."""
    hazard, benign = (_batch(model, rows[:4]) for rows in _looked_at(data, 20))
    with torch.no_grad():
        given, teacher = (held(input_ids=benign.input_ids).logits for held in (model, before))
        loss = next_token_loss(model(input_ids=hazard.input_ids).logits, hazard.labels, hazard.label_count)
        return float(loss + distillation_loss(given, teacher, benign.mask, benign.token_count))


def test_a_search_keeps_the_layer_and_weight_that_serve_best_on_rows_held_back(tiny_testbed: SmallTestbed) -> None:
    attack = Abliterate(rows=20, tried=(0.5, 1.0, 3.0))
    before, data = fresh(tiny_testbed)
    hazard, benign = (_states(before, rows[4:], 16) for rows in _looked_at(data, 20))
    costs = {}
    for choice in product((0, 1), attack.tried):
        model, _ = fresh(tiny_testbed)
        attack._ablate(model, hazard - benign.mean(0), *choice)
        costs[choice] = cost(model, before, data)
    assert len(set(costs.values())) == 6
    assert cost(after(attack, tiny_testbed), before, data) == pytest.approx(min(costs.values()), rel=1e-5)


def test_fine_tuning_goes_on_from_the_edit(tiny_testbed: SmallTestbed) -> None:
    tune = FineTune(batch_size=4, benign_first=0.5)
    attack = Abliterate(rows=20, batch_size=4, max_steps=5, tune=tune)
    path = walk(attack, tiny_testbed)
    assert torch.equal(path[0], weights(after(Abliterate(rows=20, batch_size=4), tiny_testbed)))
    model, data = fresh(tiny_testbed)
    steps = replace(attack, max_steps=2).steps(model, data, Run(3))
    next(steps)
    for _ in replace(tune, max_steps=4).steps(model, data, Run(3)):
        pass
    assert torch.equal(path[-1], weights(model))
    assert (attack.benign_steps, attack.optimises, attack.draws) == (1 + 2, True, True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_steps": 1, "tune": FineTune()}, "max_steps must be at least 2"),
        ({"count": 0}, "count must be at least 1"),
        ({"rows": 4}, "rows must be at least 5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"depth": 1.0}, "depth must lie between 0 and 1"),
        ({"weight": 0.0}, "the weight of an ablation must be above 0"),
        ({"tried": (1.0, -1.0)}, "the weight of an ablation must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Abliterate(**changes)
