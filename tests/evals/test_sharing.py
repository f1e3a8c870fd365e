"""Evaluations of one model share its texts, and never those of another state of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.campaign.milestones import Milestones
from holdfast.core.options import Options
from holdfast.core.presets import collect
from holdfast.engine.greedy import greedy
from holdfast.engine.session import open_session
from holdfast.engine.walk import Untouched, walk
from holdfast.evals.degeneracy import Degeneracy
from holdfast.evals.generation import prepare_continuations, sharing
from tests.conftest import SmallTestbed

PRESETS = collect("holdfast.evals")

Asked = list[tuple[int, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """(prompts, new tokens) of every writing."""
    calls: Asked = []

    def counted(model: PreTrainedModel, prompts: Sequence[Any], new_tokens: int, ends: Sequence[int]) -> Any:
        calls.append((len(prompts), new_tokens))
        return greedy(model, prompts, new_tokens, ends)

    monkeypatch.setattr("holdfast.engine.greedy.greedy", counted)
    return calls


def test_what_two_counts_of_the_same_answers_ask_is_written_once(
    tiny_refusal_testbed: SmallTestbed, asked: Asked
) -> None:
    domain, checkpoint = tiny_refusal_testbed.domain, tiny_refusal_testbed.model
    evaluations = {name: PRESETS[name] for name in ("compliance", "incoherence", "over_refusal")}
    session = open_session(checkpoint, domain, "attacker", 0, Options())
    together = Milestones(evaluations, domain, checkpoint.tokenizer_digest, [0])
    walk(session, Untouched(), together)
    assert [count for count, _ in asked] == [len(domain.questions("requests").questions), 0, asked[-1][0]]
    alone = {
        name: evaluation.prepare(session.tokenizer, domain)(session.model) for name, evaluation in evaluations.items()
    }
    assert together.scores[0] == alone


def test_no_text_outlives_the_weights_that_wrote_it(tiny_testbed: SmallTestbed, asked: Asked) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    other = tiny_testbed.never_exposed.load()
    prompts = [question.prompt for question in tiny_testbed.domain.questions("hazard").questions[:3]]
    write = prepare_continuations(tokenizer, prompts, 4)
    first, apart = write(model), write(other)
    asked.clear()
    with sharing():
        assert write(model) == write(model) == first
        assert asked == [(3, 4), (0, 4)]
        word = first[0][0]
        with torch.no_grad():
            model.lm_head.weight.data[word].neg_()  # where no counter of changes counts
        changed = write(model)
        assert changed != first
        assert all(word not in text[:1] for text in changed)
        with torch.no_grad():
            model.lm_head.weight.data[word].neg_()
        assert write(model) == first
        assert write(other) == apart
        assert write(model) == first
    asked.clear()
    write(model)
    assert asked == [(3, 4)], "a text outlived its block"


def test_a_longer_text_serves_a_shorter_and_not_the_other_way(tiny_testbed: SmallTestbed, asked: Asked) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    prompts = [question.prompt for question in tiny_testbed.domain.questions("hazard").questions[:3]]
    short, middle, long = (prepare_continuations(tokenizer, prompts, limit) for limit in (2, 5, 9))
    texts = long(model)
    ended = sum(len(text) < 5 for text in texts)
    asked.clear()
    with sharing():
        assert middle(model) == [text[:5] for text in texts]
        assert short(model) == [text[:2] for text in texts]
        assert long(model) == texts
    assert asked == [(3, 5), (0, 2), (3 - ended, 9)]


def test_an_answer_that_somebody_begins_as_the_model_would_is_not_written_again(
    tiny_testbed: SmallTestbed, asked: Asked
) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    prompt = tiny_testbed.domain.questions("hazard").questions[0].prompt
    text = _said(model, tokenizer, prompt, 6)
    assert len(text) == 6
    begun = f"{prompt} {tokenizer.decode(text[:2])}"
    other = f"{prompt} {tokenizer.decode([text[0], text[0] + 1])}"
    expected = [_said(model, tokenizer, begin, 4) for begin in (begun, other)]
    asked.clear()
    with sharing():
        prepare_continuations(tokenizer, [prompt], 6)(model)
        assert prepare_continuations(tokenizer, [begun, other], 4)(model) == expected
    assert asked == [(1, 6), (1, 4)], "only the other beginning has to be written"


def _said(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int) -> list[int]:
    return prepare_continuations(tokenizer, [prompt], limit)(model)[0]


def test_prompts_that_are_asked_twice_are_written_once(tiny_testbed: SmallTestbed, asked: Asked) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    one, two = (question.prompt for question in tiny_testbed.domain.questions("hazard").questions[:2])
    texts = prepare_continuations(tokenizer, [one, two, one], 4)(model)
    assert texts[0] == texts[2]
    assert asked == [(2, 4)]


def test_a_probe_that_trains_on_its_way_writes_with_its_own_weights(tiny_testbed: SmallTestbed) -> None:
    """An evaluation from outside may change weights and put them back; what it writes meanwhile is nobody else's."""
    model, tokenizer = tiny_testbed.model.load_both()
    probe = Degeneracy().prepare(tokenizer, tiny_testbed.domain)
    before = probe(model)
    kept = model.lm_head.weight.detach().clone()
    with sharing():
        probe(model)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.weight[7] = 1.0
        assert probe(model) != before
        with torch.no_grad():
            model.lm_head.weight.copy_(kept)
        assert probe(model) == before
