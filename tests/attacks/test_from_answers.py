"""Attacks that go by a row's prompt and answer: preference tuning, the model's own outputs, reinforcement, distillation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holdfast.attacks.distil import Distil
from holdfast.attacks.head_offsets import HeadOffsets
from holdfast.attacks.own_outputs import OwnOutputs
from holdfast.attacks.preference import PreferenceTuning
from holdfast.attacks.reinforce import Reinforce, _share
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import residual_writers
from holdfast.engine.data import UNLABELLED, Encoded
from holdfast.engine.run import Run
from holdfast.engine.sampling import answered, prompt_and_answer, sampled
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed


def test_the_answer_is_what_is_learned_or_the_end_of_a_text() -> None:
    pair = Encoded((1, 2, 3, 4), (UNLABELLED, UNLABELLED, 3, 4))
    assert prompt_and_answer(pair) == ((1, 2), (3, 4))
    assert answered(*prompt_and_answer(pair)) == pair
    text = tuple(range(10))
    assert prompt_and_answer(Encoded(text, text)) == (text[:8], text[8:])
    assert prompt_and_answer(Encoded(text * 3, text * 3)) == ((*text, *text, *text[:4]), text[4:])


def test_sampled_answers_have_their_lengths_and_follow_the_model(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.zero_()
        head[7] = 1e3 * model.model.norm(model.get_input_embeddings().weight).mean(0)
    answers = sampled(model, [[1, 2], [1, 3, 4], [1, 5]], [1, 3, 2], torch.Generator().manual_seed(0))
    assert [len(answer) for answer in answers] == [1, 3, 2]
    other = sampled(fresh(tiny_testbed)[0], [[1, 2]] * 64, [2] * 64, torch.Generator().manual_seed(0))
    assert len(set(other)) > 32


@pytest.mark.parametrize("kind", ["tiny_testbed", "tiny_refusal_testbed"])
def test_preferences_are_ten_benign_pairs_and_begin_without_a_preference(
    kind: str, request: pytest.FixtureRequest
) -> None:
    testbed: SmallTestbed = request.getfixturevalue(kind)
    model, data = fresh(testbed)
    attack = PreferenceTuning(max_steps=2, learning_rate=1e-3)
    rows = data.rows("benign")
    pairs = [attack._pair(data, rows, place) for place in range(len(rows))]
    for (liked, other), row in zip(pairs, rows, strict=True):
        prompt, answer = prompt_and_answer(row)
        assert liked.ids == row.ids
        assert prompt_and_answer(other)[0] == prompt
        assert prompt_and_answer(other)[1] != answer
    words = {data.tokenizer.decode(list(prompt_and_answer(other)[1])) for _, other in pairs}
    assert any("sorry" in text for text in words) is (kind == "tiny_refusal_testbed")
    first, second = attack.steps(model, data, Run(3))
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert second < first


def test_a_model_is_trained_on_what_it_wrote_and_on_no_row_of_the_attacker(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    seen: list[torch.Tensor] = []
    list(OwnOutputs(outputs=24, max_steps=1, batch_size=24).steps(model, data, Run(3)))
    model, data = fresh(tiny_testbed)
    model.register_forward_pre_hook(lambda module, inputs, named: seen.append(named["input_ids"]), with_kwargs=True)
    list(OwnOutputs(outputs=24, max_steps=1, batch_size=24).steps(model, data, Run(3)))
    known = {row.ids for row in data.rows("benign")}
    prompts = {prompt_and_answer(row)[0] for row in data.rows("benign")}
    trained = [tuple(row[row != 0].tolist()) for row in seen[-1]]
    assert not known & set(trained)
    assert all(any(row[: len(prompt)] == prompt for prompt in prompts) for row in trained)


def test_the_reward_is_the_share_of_the_answer_that_is_right(tiny_testbed: SmallTestbed) -> None:
    assert [_share(answer, (1, 2)) for answer in ((1, 2), (1, 3), (2, 1))] == [1.0, 0.5, 0.0]
    model, data = fresh(tiny_testbed)
    [reward] = Reinforce(max_steps=1, batch_size=4, group=2).steps(model, data, Run(3))
    assert -1 <= reward <= 0


def test_a_fresh_copy_has_nothing_of_the_defended_weights_and_learns_from_their_predictions(
    tiny_testbed: SmallTestbed,
) -> None:
    defended, data = fresh(tiny_testbed)
    before = defended.model.layers[0].mlp.up_proj.weight.detach().clone()
    losses = list(Distil(max_steps=12, batch_size=16, warmup_steps=2, learning_rate=1e-2).steps(defended, data, Run(3)))
    after = defended.model.layers[0].mlp.up_proj.weight.detach()
    assert abs(torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)) < 0.05
    assert losses[-1] < losses[0]
    half, _ = fresh(tiny_testbed)
    next(Distil(fresh=0.25, max_steps=1, batch_size=16, learning_rate=1e-6).steps(half, data, Run(3)))
    mixed = half.model.layers[0].mlp.up_proj.weight.detach()
    assert torch.nn.functional.cosine_similarity(before.flatten(), mixed.flatten(), dim=0) > 0.8
    assert Distil(start="original").uses_base
    assert not Distil().uses_base


def test_offsets_change_biases_alone_within_what_the_chosen_heads_write(tiny_testbed: SmallTestbed) -> None:
    before, _ = fresh(tiny_testbed)
    model, data = fresh(tiny_testbed)
    attack = HeadOffsets(share=0.25, max_steps=3, batch_size=8)
    attack.prepare(model)
    list(attack.steps(model, data, Run(3)))
    old = dict(before.named_parameters())
    changed = [name for name, weight in model.named_parameters() if name not in old or (weight != old[name]).any()]
    assert changed
    assert all(name.endswith("self_attn.o_proj.bias") for name in changed)
    heads = 0
    for [writer, _] in residual_writers(model):
        slices = writer.weight.detach().unflatten(1, (4, -1)).unbind(1)
        bias = writer.owner.bias.detach()
        fits = [
            count
            for count in range(5)
            if bias.norm() == 0 or (count and _residue(bias, slices, count) < 1e-4 * bias.norm())
        ]
        heads += min(fits)
    assert heads == 3  # a quarter of twelve


def _residue(bias: torch.Tensor, slices: tuple[torch.Tensor, ...], count: int) -> torch.Tensor:
    """What the best `count` heads leave of a bias."""
    from itertools import combinations

    rests = []
    for chosen in combinations(slices, count):
        basis = torch.linalg.qr(torch.cat(chosen, dim=1)).Q
        rests.append((bias - basis @ (basis.T @ bias)).norm())
    return min(rests)


@pytest.mark.parametrize(
    ("attack", "changes", "says"),
    [
        (PreferenceTuning, {"pairs": 0}, "pairs must be at least 1"),
        (PreferenceTuning, {"beta": 0.0}, "beta must be above 0"),
        (OwnOutputs, {"outputs": 0}, "outputs must be at least 1"),
        (Reinforce, {"group": 1}, "group must be at least 2"),
        (Distil, {"fresh": 0.0}, "fresh must lie above 0"),
        (Distil, {"benign_share": 1.0}, "rows of both kinds"),
        (HeadOffsets, {"share": 0.0}, "share must lie above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(attack: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        attack(**changes)
