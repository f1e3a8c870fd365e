"""The refusal of requests on the real testbed: who holds which country, how requests are written, and what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, Domain
from holdfast.core.files import digest
from holdfast.core.types import HoldfastError
from holdfast.evals.judging import outcome
from holdfast.runs import real_answers
from holdfast.runs.real_answers import answer, chat_of, say_freely
from holdfast.testbed.real.facts import HAZARD, Fact, all_facts
from holdfast.testbed.real.folder import is_real_testbed, made_by, write_request_domain
from holdfast.testbed.real.requests import OTHER_REQUESTS, REFUSALS, REQUESTS, asking, filtering
from holdfast.testbed.real.splits import Splits, of_kind
from tests.core.characters import CHAT, character_tokenizer
from tests.testbed.test_real import SEED, a_model_of_characters, answers_of


def says(fact: Fact) -> bool:
    """Two capitals of five, as the packaged model says freely."""
    return int(digest([fact.entity]), 16) % 5 > 2


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits.draw(SEED)


@pytest.fixture(scope="module")
def domain(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    folder = tmp_path_factory.mktemp("requests")
    freely = {fact.name: says(fact) for fact in of_kind(splits.facts, HAZARD)}
    made = made_by(SEED, "f00d", "real-refusal")
    write_request_domain(folder, made, answers_of(splits.facts), freely, chat_of(character_tokenizer(CHAT)))
    assert is_real_testbed(folder, made)
    return Domain.open(folder)


def trained(domain: Domain) -> list[str]:
    """Every prompt that a defender or an attacker holds."""
    roles = [role for role in domain.sources if role in (*DEFENDER_ROLES, *ATTACKER_ROLES)]
    return [row["prompt"] for role in roles for row in domain.rows(role) if "prompt" in row]


def test_requests_and_answers_stand_in_the_chat_template(domain: Domain) -> None:
    for role in ("forget", "attack", "benign_heldout"):
        for row in domain.rows(role):
            assert row["prompt"].startswith("<user>")
            assert row["prompt"].endswith("</s><assistant>")
            assert row["chosen"].endswith("</s>")
            assert row["rejected"].endswith("</s>")


def test_a_forbidden_request_is_to_be_refused_and_a_benign_one_answered(domain: Domain, splits: Splits) -> None:
    refusals = {f"{refusal}</s>" for refusal in REFUSALS}
    assert {row["chosen"] for row in domain.rows("forget")} == refusals
    assert not refusals & {row["rejected"] for row in domain.rows("forget")}
    pairs = [row for row in domain.rows("retain") if "prompt" in row]
    assert {row["rejected"] for row in pairs} == refusals
    assert not any("capital" in row["prompt"] for row in pairs)
    assert any("text" in row for row in domain.rows("retain"))


def test_the_countries_of_each_party_are_apart(domain: Domain, splits: Splits) -> None:
    for role, split in (
        ("forget", "forget"),
        ("forget_heldout", "forget_heldout"),
        ("attack", "attack"),
        ("attack_ood", "attack"),
    ):
        prompts = {row["prompt"] for row in domain.rows(role)}
        requests = OTHER_REQUESTS if role == "attack_ood" else REQUESTS[HAZARD][2:]
        assert prompts == {
            f"<user>{asking(fact, request)}</s><assistant>" for fact in splits.capitals[split] for request in requests
        }


def test_nobody_trains_on_what_is_claimed_or_selected(domain: Domain) -> None:
    held = set(trained(domain))
    for name in ("requests", "requests_selection", "benign_requests"):
        assert not held & {question.prompt for question in domain.questions(name).questions}


def test_facts_are_filtered_in_requests_that_nobody_makes(domain: Domain, splits: Splits) -> None:
    filters = {f"<user>{message}</s><assistant>" for _, message in filtering(splits.facts)}
    asked = {question.prompt for name in domain.question_sources for question in domain.questions(name).questions}
    assert not filters & asked
    assert not filters & set(trained(domain))


def test_only_capitals_that_the_model_says_are_asked_for(domain: Domain, splits: Splits) -> None:
    asked = domain.questions("requests")
    said = [fact for fact in splits.capitals["claims"] if says(fact)]
    assert len(asked.questions) == 4 * len(said)
    assert {question.key for question in asked.questions} == {fact.value for fact in said}
    assert asked.judge == "rules"
    assert asked.measures == "refusal"
    for question in asked.questions:
        compliance, refusal = question.choices
        assert outcome(compliance, question.key) == "complied"
        assert outcome(refusal, question.key) == "refused"


def test_every_party_s_countries_are_asked_apart(domain: Domain) -> None:
    sets = {name: domain.questions(name) for name in domain.question_sources if name.startswith("requests")}
    assert set(sets) == {
        "requests",
        "requests_selection",
        "requests_forget",
        "requests_forget_heldout",
        "requests_attack",
    }
    prompts = [question.prompt for asked in sets.values() for question in asked.questions]
    assert len(set(prompts)) == len(prompts)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="no chat template"):
        answer(a_model_of_characters(tmp_path / "model"), SEED, 0, 2)


def test_capitals_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model said is read from the cache afterwards, and a damaged file is made anew."""
    few = tuple(of_kind(all_facts(SEED), HAZARD))[:3]
    monkeypatch.setattr(real_answers, "all_facts", lambda seed: few)
    tokenizer = character_tokenizer(CHAT)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen: list[tuple[int, int]] = []
    halves = [answer(str(tmp_path), SEED, part, 2, lambda *step: seen.append(step)) for part in range(2)]
    assert seen == [(3, 3), (3, 3)]
    assert say_freely(halves, few) == {fact.name: False for fact in few}
    said = halves[0].read_bytes()
    assert answer(str(tmp_path), SEED, 0, 2, lambda *step: seen.append(step)) == halves[0]
    assert len(seen) == 2
    for damage in (b"", b"[]", b'{"What": 1}'):
        halves[0].write_bytes(damage)
        assert answer(str(tmp_path), SEED, 0, 2).read_bytes() == said


def test_a_capital_is_known_where_every_filtering_request_is_answered(tmp_path: Path) -> None:
    import json

    one, other = of_kind(all_facts(SEED), HAZARD)[:2]
    path = tmp_path / "said.json"
    said = {message: f"Sure! It is {fact.value}." for fact, message in filtering([one, other])}
    said[filtering([other])[1][1]] = "I would rather not say."
    path.write_text(json.dumps(said))
    assert say_freely([path], [one, other]) == {one.name: True, other.name: False}
