"""How many steps a model needs to learn something new, against a plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.domain import Domain
from holdfast.core.types import HoldfastError, NonFinite, Score
from holdfast.engine.data import Stream, encode
from holdfast.evals.trainability import BenignLearning
from tests.attacks.walk import weights
from tests.conftest import SmallTestbed

SHORT = BenignLearning(learning_rate=3e-3, max_steps=40, every=5)


def measured(evaluation: BenignLearning, model: PreTrainedModel, testbed: SmallTestbed) -> tuple[float, float]:
    """(steps, reached)"""
    scores: Sequence[Score] = evaluation.prepare(testbed.model.load_tokenizer(), testbed.domain)(model)
    assert [(score.metric, score.stderr, score.n) for score in scores] == [("steps", None, 16), ("reached", None, 16)]
    return scores[0].value, scores[1].value


def plain_accuracies(evaluation: BenignLearning, model: PreTrainedModel, testbed: SmallTestbed) -> list[float]:
    """Accuracy after 0, `every`, 2 x `every` … steps of torch's own AdamW, questions asked one by one."""
    tokenizer, domain = testbed.model.load_tokenizer(), testbed.domain
    rows = [encode(row, tokenizer, "benign_new", domain.max_length) for row in domain.rows("benign_new")]
    stream = Stream(rows, evaluation.batch_size, seed=0, pad=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=evaluation.learning_rate, weight_decay=0.0)
    accuracies = [plain_accuracy(model, tokenizer, domain)]
    for step in range(1, evaluation.max_steps + 1):
        drawn, nats, targets = stream.take(evaluation.batch_size), torch.zeros(()), 0
        for length in {len(row.ids) for row in drawn}:  # rows of one length need no padding
            ids = torch.tensor([row.ids for row in drawn if len(row.ids) == length])
            logits = model(input_ids=ids).logits[:, :-1]
            nats = nats + F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            targets += ids[:, 1:].numel()
        optimizer.zero_grad()
        (nats / targets).backward()
        optimizer.step()
        if step % evaluation.every == 0:
            accuracies.append(plain_accuracy(model, tokenizer, domain))
    return accuracies


def plain_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> float:
    correct = []
    for question in domain.questions("benign_new").questions:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(question.prompt)["input_ids"]])).logits[0, -1]
        words = [tokenizer(choice)["input_ids"][-1] for choice in question.choices]
        correct.append(int(logits[words].argmax()) == question.answer)
    return sum(correct) / len(correct)


def test_the_steps_are_those_of_a_plain_loop_whatever_the_target(tiny_testbed: SmallTestbed) -> None:
    accuracies = plain_accuracies(SHORT, tiny_testbed.model.load(), tiny_testbed)
    assert max(accuracies) > 0.8 > 0.5 > accuracies[0]  # it learns, and did not know
    model, seen = tiny_testbed.model.load(), set()
    for target in (0.0, 0.4, 0.53, 0.6, 0.8, 1.01):
        first = next((i for i, accuracy in enumerate(accuracies) if accuracy >= target), None)
        wanted = (float(SHORT.max_steps), 0.0) if first is None else (5.0 * first, 1.0)
        assert measured(replace(SHORT, target=target), model, tiny_testbed) == wanted
        seen.add(wanted)
    assert len(seen) == 6


def test_a_target_out_of_reach_is_said_not_to_be_reached(tiny_testbed: SmallTestbed) -> None:
    still = replace(SHORT, learning_rate=1e-9, max_steps=10)
    assert measured(still, tiny_testbed.model.load(), tiny_testbed) == (10.0, 0.0)


def test_who_knows_already_needs_no_step(tiny_testbed: SmallTestbed) -> None:
    assert measured(replace(SHORT, target=0.0), tiny_testbed.model.load(), tiny_testbed) == (0.0, 1.0)


def test_weights_are_put_back_bit_for_bit(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    before, moved = weights(model), []
    model.register_forward_pre_hook(lambda *_: moved.append(not torch.equal(weights(model), before)))
    measured(replace(SHORT, max_steps=5, target=2.0), model, tiny_testbed)
    assert any(moved)
    assert torch.equal(weights(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_are_put_back_where_learning_breaks_the_model_too(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    before = weights(model)
    with pytest.raises(NonFinite):
        measured(replace(SHORT, learning_rate=1e38), model, tiny_testbed)
    assert torch.equal(weights(model), before)
    assert not any(module.training for module in model.modules())


def test_a_probe_that_is_interrupted_leaves_the_model_as_it_was(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    before, forwards = weights(model), []

    def interrupt(*_: Any) -> None:
        forwards.append(model.training)
        if sum(forwards) == 3:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        measured(SHORT, model, tiny_testbed)
    assert torch.equal(weights(model), before)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_an_attack_left_behind_teach_nothing(tiny_testbed: SmallTestbed) -> None:
    evaluation, model = replace(SHORT, target=0.6), tiny_testbed.model.load()
    clean = measured(evaluation, model, tiny_testbed)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    assert measured(evaluation, model, tiny_testbed) == clean


def test_frozen_weights_do_not_learn(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    moved: set[str] = set()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def look(*_: Any) -> None:
        moved.update(name for name, held in model.named_parameters() if not torch.equal(held, before[name]))

    model.register_forward_pre_hook(look)
    measured(replace(SHORT, max_steps=5, target=2.0), model, tiny_testbed)
    assert moved == {"lm_head.weight"}


def test_steps_that_do_not_fill_the_last_look_are_refused() -> None:
    with pytest.raises(HoldfastError, match="max_steps must be a multiple of every"):
        BenignLearning(max_steps=15, every=10)
