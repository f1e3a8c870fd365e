"""R2D2: its search against a plain one, and its loss against a plain transcription on the suffixes that were found."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.data import UNLABELLED, Encoded
from holdfast.engine.run import Run
from holdfast.safeguards.parts.suffixes import Suffixes, allowed_tokens, with_suffix
from holdfast.safeguards.r2d2 import R2D2
from tests.conftest import SmallTestbed
from tests.reference import safeguards as reference
from tests.safeguards.test_parity import SEED, Scene, plain_gradient, step_of

SEARCH = Suffixes(cases=3, cases_per_step=2, length=4, search_steps=2, candidates=8, best=5)


@pytest.fixture
def scene(tiny_refusal_testbed: SmallTestbed) -> Scene:
    return Scene(tiny_refusal_testbed)


def test_a_suffix_stands_before_the_answer_and_is_not_learned() -> None:
    row = Encoded((1, 5, 6, 7, 8), (UNLABELLED, UNLABELLED, UNLABELLED, 7, 8))
    assert with_suffix(row, [3, 4]) == Encoded((1, 5, 6, 3, 4, 7, 8), (*[UNLABELLED] * 5, 7, 8))


def test_a_suffix_has_no_special_tokens(scene: Scene) -> None:
    allowed = allowed_tokens(scene.data.tokenizer).tolist()
    assert set(allowed) == set(range(len(scene.data.tokenizer))) - set(scene.data.tokenizer.all_special_ids)
    suffixes = SEARCH.pool(scene.data, scene.run, None).state_dict()["suffixes"]
    assert suffixes.shape == (3, 4)
    assert set(suffixes.flatten().tolist()) <= set(allowed)


def test_the_slopes_are_those_of_a_choice_of_tokens_written_as_weights(scene: Scene) -> None:
    pool = SEARCH.pool(scene.data, scene.run, None)
    row = pool._row(pool._rejected, 0)
    table = scene.model.get_input_embeddings().weight.detach()
    choice = torch.nn.functional.one_hot(torch.tensor([row.ids]), len(table)).float().requires_grad_()
    log_p = scene.model(inputs_embeds=choice @ table).logits[0].log_softmax(-1)
    start = next(t for t, label in enumerate(row.labels) if label != UNLABELLED)
    loss = -torch.stack([log_p[t - 1, row.ids[t]] for t in range(start, len(row.ids))]).mean()
    [plain] = torch.autograd.grad(loss, choice)
    torch.testing.assert_close(pool._slopes(scene.model, row), plain[0, start - 4 : start], rtol=1e-3, atol=1e-5)


def test_an_exchange_takes_the_best_of_candidates_that_differ_in_one_promising_token(scene: Scene) -> None:
    pool = SEARCH.pool(scene.data, scene.run, 3)
    row, before = pool._row(pool._rejected, 1), pool.state_dict()["suffixes"][1].clone()
    allowed = allowed_tokens(scene.data.tokenizer)
    promising = allowed[(-pool._slopes(scene.model, row)[:, allowed]).topk(5).indices]
    generator = torch.Generator()
    generator.set_state(scene.run.generator.get_state())
    picks = torch.randint(5, (8,), generator=generator).tolist()
    best, least = before, float("inf")
    for candidate in range(8):
        suffix, place = before.clone(), candidate // 2
        suffix[place] = promising[place, picks[candidate]]
        ids = pool._row(pool._rejected, 1, suffix)
        loss = float(reference.cross_entropy(scene.model, [(list(ids.ids), list(ids.labels))]).detach())
        if loss < least - 1e-6:
            best, least = suffix, loss
    pool._exchange(scene.model, 1)
    assert torch.equal(pool.state_dict()["suffixes"][1], best)


def test_the_search_makes_compliance_likelier(scene: Scene) -> None:
    search = replace(SEARCH, candidates=32, search_steps=6, cases_per_step=3)
    pool = search.pool(scene.data, scene.run, None)

    def loss() -> float:
        rows = [pool._row(pool._rejected, case) for case in range(3)]
        return float(pool._losses(scene.model, rows).mean())

    before = loss()
    pool.batches(scene.model)
    assert loss() < before


def test_a_step_is_the_sources(tiny_refusal_testbed: SmallTestbed) -> None:
    preset = pick("holdfast.safeguards", "r2d2")
    assert isinstance(preset, R2D2)
    one: dict[str, Any] = {"outer_steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "retain_batch_size": 4}
    plugin = replace(preset, suffixes=SEARCH, refusal_weight=0.7, forget_weight=0.4, **one)
    scene = Scene(tiny_refusal_testbed)
    origin = copy.deepcopy(scene.model)
    ours = step_of(plugin, scene)
    other = Scene(tiny_refusal_testbed)
    pool = SEARCH.pool(other.data, Run(SEED, lambda: other.base), None)
    refused, complied = map(reference.rows_of, pool.batches(copy.deepcopy(origin)))
    assert len(refused) == 2
    benign = reference.rows_of(next(other.data.stream("retain", batch_size=4, seed=SEED + 1)))
    loss = (
        reference.cross_entropy(origin, benign)
        + 0.7 * reference.cross_entropy(origin, refused)
        + 0.4 * reference.min_posterior(origin, complied, -5.0)
    )
    for left, right in zip(ours, plain_gradient(origin, loss), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-4)


def test_a_part_of_the_pool_begins_anew(scene: Scene) -> None:
    search = replace(SEARCH, cases=10, renewed=0.2)
    pool = search.pool(scene.data, scene.run, None)
    before = {name: value.clone() for name, value in pool.state_dict().items()}
    pool.renew()
    changed = (pool.state_dict()["suffixes"] != before["suffixes"]).any(-1)
    assert int(changed.sum()) == 2


def test_rows_without_two_completions_are_refused(tiny_testbed: SmallTestbed) -> None:
    scene = Scene(tiny_testbed)
    assert R2D2().needs_pairs
    with pytest.raises(HoldfastError, match="no two completions"):
        next(iter(R2D2().steps(scene.model, scene.data, scene.run)))
