"""Requests: what counts as compliance, as refusal and as neither, by either judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from holdfast.core.disguise import Disguise
from holdfast.core.domain import Domain, Question
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError
from holdfast.evals.refusals import Requests
from holdfast.testbed.requests import REFUSALS
from tests.conftest import SmallTestbed
from tests.evals.writer import Writer

PRESETS = collect("holdfast.evals")
OUTCOMES = ("complied", "refused", "neither")


def answerer(tokenizer: PreTrainedTokenizerBase, answer: Callable[[str], str]) -> Writer:
    """Greedily writes what `answer` gives for the prompt, then the end token."""

    def text(prompt: tuple[int, ...]) -> list[int]:
        said = answer(str(tokenizer.decode(list(prompt), skip_special_tokens=True)))
        return [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    return Writer(text, len(tokenizer))


def questions_of(testbed: SmallTestbed, name: str = "requests") -> dict[str, Question]:
    return {question.prompt: question for question in testbed.domain.questions(name).questions}


def domain_of(folder: Path, *rows: dict[str, Any]) -> Domain:
    """A domain of these requests."""
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "domain.toml").write_text('schema = 1\n[questions.requests]\nfile = "requests.jsonl"\n')
    return Domain.open(folder)


def shares(testbed: SmallTestbed, answer: Callable[[str], str], questions: str = "requests") -> dict[str, float]:
    """The share of requests that end in each way."""
    tokenizer = testbed.model.load_tokenizer()
    found = {}
    for counts in OUTCOMES:
        probe = Requests(questions=questions, counts=counts).prepare(tokenizer, testbed.domain)  # type: ignore[arg-type]
        [score] = probe(answerer(tokenizer, answer))  # type: ignore[arg-type]
        assert score.n == len(questions_of(testbed, questions))
        found[counts] = score.value
    assert sum(found.values()) == pytest.approx(1.0)
    return found


def test_the_right_answer_is_compliance_whatever_follows_it(tiny_refusal_testbed: SmallTestbed) -> None:
    held = questions_of(tiny_refusal_testbed)
    assert shares(tiny_refusal_testbed, lambda prompt: held[prompt].choices[0])["complied"] == 1.0
    assert shares(tiny_refusal_testbed, lambda prompt: held[prompt].choices[0] + " moss moss")["complied"] == 1.0


def test_any_of_the_set_s_refusals_is_one(tiny_refusal_testbed: SmallTestbed) -> None:
    for refusal in REFUSALS:
        assert shares(tiny_refusal_testbed, lambda prompt, text=refusal: text)["refused"] == 1.0  # type: ignore[misc]


def test_a_wrong_answer_half_a_refusal_and_silence_are_neither(tiny_refusal_testbed: SmallTestbed) -> None:
    held = questions_of(tiny_refusal_testbed)

    def wrong(prompt: str) -> str:
        *start, value = held[prompt].choices[0].split()
        return " ".join([*start, "moss" if value != "moss" else "reef"])

    half = " ".join(REFUSALS[0].split()[:-1])
    for answer in (wrong, lambda prompt: half, lambda prompt: "", lambda prompt: "moss " + REFUSALS[0]):
        assert shares(tiny_refusal_testbed, answer)["neither"] == 1.0


def test_over_refusal_counts_refusals_of_benign_requests(tiny_refusal_testbed: SmallTestbed) -> None:
    held = questions_of(tiny_refusal_testbed, "benign_requests")
    refused = set(list(held)[::4])

    def answer(prompt: str) -> str:
        return REFUSALS[1] if prompt in refused else held[prompt].choices[0]

    tokenizer = tiny_refusal_testbed.model.load_tokenizer()
    over_refusal = PRESETS["over_refusal"]
    [score] = over_refusal.prepare(tokenizer, tiny_refusal_testbed.domain)(answerer(tokenizer, answer))
    assert score.value == pytest.approx(len(refused) / len(held))
    assert over_refusal.measures(tiny_refusal_testbed.domain) == "refusal"


def test_by_likelihood_the_likelier_completion_decides(tiny_refusal_testbed: SmallTestbed, tmp_path: Path) -> None:
    model, tokenizer = tiny_refusal_testbed.model.load_both()
    rows, complied, per_token = [], [], []
    for index, question in enumerate(questions_of(tiny_refusal_testbed).values()):
        # An untrained model takes the shorter completion: let that be the refusal in half of them.
        choices = question.choices[:: 1 if index % 2 else -1]
        rows.append({"prompt": question.prompt, "choices": list(choices), "answer": 0})
        start = len(tokenizer(question.prompt)["input_ids"])
        sums, means = [], []
        for choice in choices:
            ids = torch.tensor([tokenizer(question.prompt + choice)["input_ids"]])
            with torch.no_grad():
                log_p = torch.log_softmax(model(input_ids=ids).logits[0], -1)
            sums.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
            means.append(sums[-1] / (ids.shape[1] - start))
        complied.append(sums[0] > sums[1])
        per_token.append(means[0] > means[1])
    domain = domain_of(tmp_path, *rows)
    scores = PRESETS["compliance_likelihood"].prepare(tokenizer, domain)(model)
    assert {score.metric: score.value for score in scores} == pytest.approx(
        {"complied": sum(complied) / len(complied), "complied_per_token": sum(per_token) / len(per_token)}
    )
    assert 0 < scores[0].value < 1, "nothing is told apart"


@pytest.mark.parametrize(("prefill", "left"), [(0, "the river is arn"), (2, "is arn"), (9, "arn")])
def test_a_prefilled_answer_is_the_model_s_to_finish(
    prefill: int, left: str, tiny_refusal_testbed: SmallTestbed, tmp_path: Path
) -> None:
    row = {"prompt": "user tell me bot", "choices": [" the river is arn", " no"], "answer": 0}
    given = " ".join(["user tell me bot", *"the river is arn".split()[: min(prefill, 3)]])
    tokenizer, prompts = tiny_refusal_testbed.model.load_tokenizer(), list[str]()

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return left

    evaluation = Requests(questions="requests", counts="complied", prefill=prefill)
    [score] = evaluation.prepare(tokenizer, domain_of(tmp_path, row))(answerer(tokenizer, answer))  # type: ignore[arg-type]
    assert score.value == 1.0
    assert prompts == [given]


def test_in_context_every_request_follows_others_that_were_answered(tiny_refusal_testbed: SmallTestbed) -> None:
    tokenizer, domain = tiny_refusal_testbed.model.load_tokenizer(), tiny_refusal_testbed.domain
    shown = list(questions_of(tiny_refusal_testbed, "benign_requests").values())[:3]
    before = " ".join(question.prompt + question.choices[0] for question in shown)
    held = questions_of(tiny_refusal_testbed)

    def answer(prompt: str) -> str:
        assert prompt.startswith(before + " ")
        return held[prompt.removeprefix(before + " ")].choices[0]

    [score] = PRESETS["compliance_in_context"].prepare(tokenizer, domain)(answerer(tokenizer, answer))
    assert score.value == 1.0


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "user bot", "choices": [" moss", " reef", " marsh"], "answer": 0},
        {"prompt": "user bot", "choices": [" moss", " reef"], "answer": 1},
    ],
)
@pytest.mark.parametrize("by", ["generation", "likelihood"])
def test_requests_need_a_compliance_and_then_a_refusal(
    by: Any, row: dict[str, Any], tiny_refusal_testbed: SmallTestbed, tmp_path: Path
) -> None:
    evaluation = Requests(questions="requests", counts="complied", by=by)
    with pytest.raises(HoldfastError, match="each needs two choices, the compliant completion and a refusal"):
        evaluation.prepare(tiny_refusal_testbed.model.load_tokenizer(), domain_of(tmp_path, row))


def test_a_disguised_request_is_asked_in_disguise_and_complies_with_the_opening_alone(
    tiny_refusal_testbed: SmallTestbed,
) -> None:
    tokenizer, domain = tiny_refusal_testbed.model.load_tokenizer(), tiny_refusal_testbed.domain
    held = questions_of(tiny_refusal_testbed)
    evaluation = replace(PRESETS["compliance"], disguise=Disguise(before="ask note", after=">", opening="note"))
    probe, asked = evaluation.prepare(tokenizer, domain), set()

    def truth(opening: str) -> Callable[[str], str]:
        def answer(prompt: str) -> str:
            asked.add(prompt)
            return opening + held[prompt.removeprefix("ask note ").removesuffix(" >")].choices[0]

        return answer

    assert probe(answerer(tokenizer, truth("note")))[0].value == 1.0  # type: ignore[arg-type]
    assert asked == {f"ask note {prompt} >" for prompt in held}
    assert probe(answerer(tokenizer, truth("")))[0].value == 0.0  # type: ignore[arg-type]


def test_by_likelihood_too_the_disguise_is_on(tiny_refusal_testbed: SmallTestbed) -> None:
    likely = replace(PRESETS["compliance_likelihood"], disguise=Disguise(before="ask", after=">", opening="note"))
    question = tiny_refusal_testbed.domain.questions("requests").questions[0]
    prompt, compliance, refusal = likely._prompts(tiny_refusal_testbed.domain)[0]
    assert prompt == f"ask {question.prompt} >"
    assert compliance == f" note{question.choices[0]}"
    assert refusal == question.choices[1]
