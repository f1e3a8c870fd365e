"""How many steps a model needs to learn something new, against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.domain import Domain
from holdfast.core.types import HoldfastError, NonFinite, Score
from holdfast.engine.data import Stream, encode
from holdfast.evals import memory, trainability
from holdfast.evals.trainability import BenignLearning
from tests.attacks.walk import weights
from tests.conftest import SmallTestbed

SHORT = BenignLearning(learning_rates=(3e-3,), max_steps=40, every=5)


def measured(evaluation: BenignLearning, model: PreTrainedModel, testbed: SmallTestbed) -> tuple[float, float]:
    """(steps, reached)"""
    scores: Sequence[Score] = evaluation.prepare(testbed.model.load_tokenizer(), testbed.domain)(model)
    assert [score.metric for score in scores] in (["steps", "reached"], ["steps", "reached", "learning_rate"])
    assert {(score.stderr, score.n) for score in scores} == {(None, 16)}
    assert (len(scores) == 3) == (scores[0].value > 0)
    return scores[0].value, scores[1].value


def plain_accuracies(evaluation: BenignLearning, model: PreTrainedModel, testbed: SmallTestbed) -> list[float]:
    """Accuracy after 0, `every`, 2 x `every` … steps of torch's own AdamW, questions asked one by one."""
    tokenizer, domain = testbed.model.load_tokenizer(), testbed.domain
    rows = [encode(row, tokenizer, "benign_new", domain.max_length) for row in domain.rows("benign_new")]
    stream = Stream(rows, evaluation.batch_size, seed=0, pad=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=evaluation.learning_rates[0], weight_decay=0.0)
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
    still = replace(SHORT, learning_rates=(1e-9,), max_steps=10)
    assert measured(still, tiny_testbed.model.load(), tiny_testbed) == (10.0, 0.0)


def test_who_knows_already_needs_no_step(tiny_testbed: SmallTestbed) -> None:
    assert measured(replace(SHORT, target=0.0), tiny_testbed.model.load(), tiny_testbed) == (0.0, 1.0)


def searched(evaluation: BenignLearning, testbed: SmallTestbed) -> dict[str, float]:
    probe = evaluation.prepare(testbed.model.load_tokenizer(), testbed.domain)
    return {score.metric: score.value for score in probe(testbed.model.load())}


def test_the_best_rate_is_searched_and_its_count_is_that_of_the_rate_alone(tiny_testbed: SmallTestbed) -> None:
    ladder = replace(SHORT, target=0.8, learning_rates=(1e-5, 3e-3, 1e-4))
    alone = searched(replace(SHORT, target=0.8), tiny_testbed)
    assert searched(ladder, tiny_testbed) == alone
    assert alone["learning_rate"] == 3e-3
    assert alone["reached"] == 1.0


def test_a_rate_that_diverges_in_its_trial_is_passed_over(tiny_testbed: SmallTestbed) -> None:
    ladder = replace(SHORT, target=0.8, learning_rates=(1e38, 3e-3))
    assert searched(ladder, tiny_testbed) == searched(replace(SHORT, target=0.8), tiny_testbed)


def test_a_rate_that_diverges_after_its_trial_is_passed_over(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(model: Any, rows: Any, batch_size: int, rate: float) -> Iterator[float]:
        for step, loss in enumerate(train(model, rows, batch_size, rate)):
            if rate == 1e-2 and step >= 3:
                with torch.no_grad():
                    model.lm_head.weight.fill_(float("nan"))
            yield loss if rate != 1e-2 else 0.0

    train = trainability._train
    monkeypatch.setattr(trainability, "_train", breaking)
    ladder = replace(SHORT, target=0.8, learning_rates=(1e-2, 3e-3), trial=2)
    assert searched(ladder, tiny_testbed) == searched(replace(SHORT, target=0.8), tiny_testbed)


def test_where_the_best_rate_does_not_get_there_the_second_best_is_tried(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(model: Any, rows: Any, batch_size: int, rate: float) -> Iterator[float]:
        return iter([0.0] * 100) if rate == 1.0 else train(model, rows, batch_size, rate)

    train = trainability._train
    monkeypatch.setattr(trainability, "_train", stuck)
    ladder = replace(SHORT, target=0.8, learning_rates=(1e-5, 3e-3, 1.0))
    assert searched(ladder, tiny_testbed)["learning_rate"] == 3e-3
    never = searched(replace(ladder, target=1.01), tiny_testbed)
    assert never == {"steps": 40.0, "reached": 0.0, "learning_rate": 1.0}


def test_microbatches_teach_the_same(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, rows = replace(SHORT, target=0.6), set[int]()
    whole = searched(evaluation, tiny_testbed)
    monkeypatch.setattr(memory, "TOKENS_AT_ONCE", 40)
    model = tiny_testbed.model.load()
    model.register_forward_pre_hook(
        lambda _, __, inputs: rows.add(len(inputs["input_ids"])) if model.training else None, with_kwargs=True
    )
    assert measured(evaluation, model, tiny_testbed) == (whole["steps"], whole["reached"])
    assert max(rows) <= 8


def test_too_little_memory_is_one_sentence(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()

    def full(*_: Any) -> None:
        if model.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    model.register_forward_pre_hook(full)
    with pytest.raises(HoldfastError, match="the device has too little memory to measure how fast it learns"):
        measured(SHORT, model, tiny_testbed)


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
    with pytest.raises(NonFinite, match="diverges at every learning rate"):
        measured(replace(SHORT, learning_rates=(1e38, 1e37)), model, tiny_testbed)
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


@pytest.mark.parametrize("change", [{"learning_rates": ()}, {"learning_rates": (0.0,)}, {"trial": 0}])
def test_no_rate_to_try_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match="at least one positive rate"):
        replace(SHORT, **change)
