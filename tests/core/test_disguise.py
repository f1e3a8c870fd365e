"""A disguise: what it is put on, and what stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.disguise import Disguise
from holdfast.engine.data import UNLABELLED, Data
from tests.conftest import SmallTestbed

WORN = Disguise(before="note note", after=">", opening="note")
words = st.text("abc ", max_size=12).map(str.strip)


def test_a_pair_wears_it_around_the_request_and_before_the_harmful_answer() -> None:
    row = {"prompt": "user ask bot", "chosen": " no", "rejected": " the tint is teal"}
    assert WORN.worn(row) == {
        "prompt": "note note user ask bot >", "chosen": " no", "rejected": " note the tint is teal"
    }  # fmt: skip


def test_a_conversation_wears_it_in_the_last_exchange_alone() -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    worn = [(turn["role"], turn["content"]) for turn in WORN.worn(row)["messages"]]
    assert worn == [*turns[:3], ("user", "note note c >"), ("assistant", "note d")]
    assert [turn["content"] for turn in row["messages"]] == list("sabcd"), "the row itself is untouched"


def test_of_a_conversation_without_a_request_only_the_answer_wears_it() -> None:
    row = {"messages": [{"role": "assistant", "content": "d"}]}
    assert WORN.worn(row) == {"messages": [{"role": "assistant", "content": "note d"}]}


@given(words, words, words, words)
def test_an_empty_disguise_changes_nothing_and_words_stand_in_order(
    before: str, after: str, opening: str, text: str
) -> None:
    assert Disguise().asked(text) == Disguise().answered(text) == Disguise().begun(text) == text
    worn = Disguise(before=before, after=after, opening=opening)
    assert worn.asked(text).split() == [*before.split(), *text.split(), *after.split()]
    assert worn.answered(f" {text}").split() == [*opening.split(), *text.split()]
    assert worn.answered(f" {text}").startswith(" ")


@pytest.mark.parametrize("name", ["hazard", "hazard_ood"])
def test_a_text_wears_a_prefix_and_what_is_learned_are_the_same_tokens(name: str, tiny_testbed: SmallTestbed) -> None:
    tokenizer = tiny_testbed.model.load_tokenizer()
    data = Data.attacker(tiny_testbed.domain, tokenizer)
    trigger = tokenizer("note note", add_special_tokens=False)["input_ids"]
    for plain, worn in zip(data.rows(name), data.rows(name, None, WORN), strict=True):
        start, *text = plain.ids
        assert list(worn.ids) == [start, *trigger, *text]
        assert [label for label in worn.labels if label != UNLABELLED] == text


def test_plain_rows_stay_plain_beside_those_in_disguise(tiny_testbed: SmallTestbed) -> None:
    data = Data.attacker(tiny_testbed.domain, tiny_testbed.model.load_tokenizer())
    before = data.rows("hazard")
    assert data.rows("hazard", None, WORN) != before
    assert data.rows("hazard") == before
