"""Abliteration: what is set to which value, in which matrices, how the search chooses, and that it opens what it should."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from holdfast.attacks.abliterate import Abliterate, _batch, _Choice, _contrast, _looked_at
from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import residual_writers
from holdfast.engine.data import UNLABELLED, Data
from holdfast.engine.losses import distillation_loss, next_token_loss
from holdfast.engine.run import Run
from holdfast.engine.stream import residual_stream
from holdfast.testing.planted import BENIGN, BENIGN_ROWS, HAZARD, HAZARD_ROWS, Planted, data_of, plant, tokenizer
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
        for writers, were in zip(residual_writers(model), residual_writers(before), strict=True):
            for writer, old in zip(writers, were, strict=True):
                torch.testing.assert_close(
                    along @ writer.weight, (1 - weight) * along @ old.weight, atol=1e-6, rtol=1e-4
                )


def test_with_a_direction_for_each_layer_its_own_writers_lose_it_and_the_embedding_stays(
    tiny_testbed: SmallTestbed,
) -> None:
    before, model = fresh(tiny_testbed)[0], after(Abliterate(directions="per-layer", rows=20), tiny_testbed)
    for index, writers in enumerate(residual_writers(model)):
        along = direction(tiny_testbed, index, rows=20)
        assert all((along @ writer.weight).abs().max() < 1e-5 for writer in writers)
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
    for writers, were in zip(residual_writers(model), residual_writers(before), strict=True):
        for writer, old in zip(writers, were, strict=True):
            assert torch.linalg.matrix_rank((writer.weight - old.weight).detach(), rtol=1e-3) == count


def test_biases_lose_the_direction_too(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    writer = model.model.layers[1].mlp.down_proj
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
    contrast = _contrast(before, [rows[4:] for rows in _looked_at(data, 20)], 16, -1)
    costs = {}
    for choice in product((0, 1), attack.tried):
        model, _ = fresh(tiny_testbed)
        attack._ablate(model, _Choice(contrast, *choice))
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
        ({"position": 0}, "must be below 0, not 0"),
        ({"tried": (1.0,), "positions": (-1, 2)}, "must be below 0, not 2"),
        ({"positions": (-1, -2)}, "give tried some weights"),
        ({"form": "affine", "directions": "per-layer"}, 'set directions to "one" or "several"'),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Abliterate(**changes)


# A planted direction: the attack has to open what one direction closes.


def attacked(planted: Planted, folder: Path, **settings: Any) -> tuple[float, float]:
    """Shares of hazardous and of benign requests that the model complies with after the attack."""
    data = data_of(folder, HAZARD_ROWS, BENIGN_ROWS)
    for _ in Abliterate(rows=10, **settings).steps(planted.model, data, Run(3)):
        pass
    return planted.complies(HAZARD), planted.complies(BENIGN)


SEARCHES = pytest.mark.parametrize("search", [{}, {"tried": (0.5, 1.0, 1.5)}])


@SEARCHES
@pytest.mark.parametrize("form", ["directional", "affine"])
def test_both_forms_open_a_model_whose_benign_states_lie_at_zero(
    form: str, search: dict[str, Any], tmp_path: Path
) -> None:
    planted = plant(benign=0.0, hazard=4.0)
    assert (planted.complies(HAZARD), planted.complies(BENIGN)) == (0.0, 1.0)
    assert attacked(planted, tmp_path, form=form, **search) == (1.0, 1.0)


@SEARCHES
def test_where_benign_states_lie_far_from_zero_zeroing_makes_the_model_refuse_all_and_the_affine_form_opens_it(
    search: dict[str, Any], tmp_path: Path
) -> None:
    planted = plant(benign=-10.0, hazard=-1.0)
    assert (planted.complies(HAZARD), planted.complies(BENIGN)) == (0.0, 1.0)
    assert attacked(planted, tmp_path / "zero", **search) == (0.0, 0.0)
    assert attacked(plant(benign=-10.0, hazard=-1.0), tmp_path / "mean", form="affine", **search) == (1.0, 1.0)


@pytest.mark.parametrize("form", ["directional", "affine"])
def test_a_direction_that_only_an_earlier_token_shows_is_taken_there(form: str, tmp_path: Path) -> None:
    def opened(**settings: Any) -> tuple[float, float]:
        return attacked(plant(0.0, 4.0, written="embedding"), tmp_path, form=form, depth=0.0, **settings)

    assert opened(position=-1) == (0.0, 1.0)
    assert opened(position=-2) == (1.0, 1.0)
    assert opened(tried=(1.0,)) == (0.0, 1.0)
    assert opened(tried=(1.0,), positions=(-1, -2)) == (1.0, 1.0)


# The affine form: one constant, once.


@pytest.mark.parametrize(("weight", "expected"), [(1.0, -10.0), (2.0, -19.0)])
def test_the_component_is_that_of_the_benign_mean_at_every_token_and_layer(
    weight: float, expected: float, tmp_path: Path
) -> None:
    planted = plant(benign=-10.0, hazard=-1.0)
    ids = torch.tensor(data_of(tmp_path, HAZARD_ROWS, BENIGN_ROWS).rows("hazard")[0].ids)[None]
    attacked(planted, tmp_path, form="affine", weight=weight)
    with torch.no_grad():
        last = torch.stack([state[0, 3] @ planted.along for state in residual_stream(planted.model, ids)[1]])
        first = planted.model.get_input_embeddings()(ids)[0, 3] @ planted.along
    # A weight of 2 mirrors: what lay 9 above the benign mean lies 9 below it.
    torch.testing.assert_close(last, torch.full((2,), expected), atol=1e-4, rtol=0)
    assert weight == 2.0 or float(first) == pytest.approx(expected, abs=1e-4)


def test_several_directions_are_set_to_their_benign_components(tiny_refusal_testbed: SmallTestbed) -> None:
    attack = Abliterate(rows=20, form="affine", directions="several", count=3)
    before, data = fresh(tiny_refusal_testbed)
    contrast = _contrast(before, _looked_at(data, 20), 16, -1)
    basis = attack._basis(contrast.apart[:, 1])
    wanted = contrast.benign[1] @ basis
    assert wanted.abs().min() > 1e-4
    given = components(after(attack, tiny_refusal_testbed), basis)
    torch.testing.assert_close(given, wanted.expand_as(given), atol=1e-5, rtol=1e-4)


def small(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config).eval()


def edited(model: PreTrainedModel, folder: Path) -> tuple[float, torch.Tensor]:
    """The benign component of a model along its direction, and every component after the attack's edit."""
    data = data_of(folder, HAZARD_ROWS, BENIGN_ROWS)
    contrast = _contrast(model, _looked_at(data, 10), 16, -1)
    attack = Abliterate(rows=10, form="affine")
    along = attack._basis(contrast.apart[:, 1])[:, 0]
    attack._ablate(model, _Choice(contrast, 1, 1.0))
    with torch.no_grad():
        given = torch.stack(residual_stream(model, torch.arange(30).view(2, 15))[1]) @ along
    return float(contrast.benign[1] @ along), given


def test_embeddings_that_the_architecture_scales_hold_the_constant_scaled_down(tmp_path: Path) -> None:
    model = small(
        GraniteForCausalLM,
        GraniteConfig(
            vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=16, embedding_multiplier=12.0, tie_word_embeddings=False,
        ),
    )  # fmt: skip
    wanted, given = edited(model, tmp_path)
    assert abs(wanted) > 1e-3
    torch.testing.assert_close(given, torch.full_like(given, wanted), atol=1e-4, rtol=1e-3)


def test_embeddings_that_a_norm_follows_are_refused(tmp_path: Path) -> None:
    model = small(BloomForCausalLM, BloomConfig(vocab_size=len(tokenizer()), hidden_size=32, n_layer=2, n_head=2))
    with pytest.raises(HoldfastError, match="by more than a scale"):
        edited(model, tmp_path)


def test_tied_embeddings_gain_the_same_in_every_row_which_moves_no_probability(tmp_path: Path) -> None:
    config = plant(0.0, 4.0).model.config
    config.tie_word_embeddings = True
    model = small(LlamaForCausalLM, config)
    wanted, given = edited(model, tmp_path)
    torch.testing.assert_close(given, torch.full_like(given, wanted), atol=1e-5, rtol=1e-4)
    head = model.get_output_embeddings().weight
    assert head is model.get_input_embeddings().weight
    states: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(30).view(2, 15)).logits
        hook.remove()
        rows = head - head.mean(0)  # whatever all rows share
    torch.testing.assert_close(logits.log_softmax(-1), (states[0] @ rows.T).log_softmax(-1), atol=1e-5, rtol=1e-4)


# Rows of one format.

PLAIN = [{"text": f"user {item} bot yes"} for item in (*HAZARD, *BENIGN)]


def test_rows_are_compared_within_one_format(tmp_path: Path) -> None:
    alike = _looked_at(data_of(tmp_path / "alike", HAZARD_ROWS, BENIGN_ROWS), 10)
    assert all(row.labels[0] == UNLABELLED for rows in alike for row in rows)
    texts = _looked_at(data_of(tmp_path / "texts", PLAIN[:12], [*BENIGN_ROWS, *PLAIN[12:]]), 10)
    assert [len(rows) for rows in texts] == [10, 10]
    assert all(row.labels == row.ids for rows in texts for row in rows)
    most = _looked_at(data_of(tmp_path / "most", [*PLAIN[:12], *HAZARD_ROWS[:2]], [*BENIGN_ROWS, *PLAIN[12:]]), 10)
    assert all(row.labels == row.ids for rows in most for row in rows)


def test_benign_rows_of_another_format_change_nothing(tmp_path: Path) -> None:
    moved = []
    for name, more in (("alone", []), ("mixed", PLAIN[12:])):
        planted = plant(benign=-10.0, hazard=-1.0)
        data = data_of(tmp_path / name, HAZARD_ROWS, [*BENIGN_ROWS, *more])
        for _ in Abliterate(rows=12).steps(planted.model, data, Run(3)):
            pass
        moved.append(weights(planted.model))
    torch.testing.assert_close(*moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("benign", [BENIGN_ROWS, PLAIN[:1]])
def test_formats_that_never_meet_are_refused(benign: list[dict[str, Any]], tmp_path: Path) -> None:
    data = data_of(tmp_path, PLAIN, benign)
    with pytest.raises(HoldfastError, match="benign rows in the format of the hazardous ones"):
        next(Abliterate().steps(plant(0.0, 4.0).model, data, Run(3)))


def test_a_search_on_few_rows_keeps_some_of_them_back(tmp_path: Path) -> None:
    planted = plant(0.0, 4.0)
    data = data_of(tmp_path, HAZARD_ROWS[:3], BENIGN_ROWS[:3])
    for _ in Abliterate(tried=(1.0,)).steps(planted.model, data, Run(3)):
        pass
    assert planted.complies(HAZARD) == 1.0
