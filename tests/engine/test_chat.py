"""Conversations to tokens: only answers are learned, whatever a template writes around them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from transformers.utils import chat_template_utils

from holdfast.core.types import HoldfastError
from holdfast.engine.chat import conversation
from tests.core.characters import CHAT, character_tokenizer

Turns = list[dict[str, str]]

TURN = "{{ '<' + m['role'] + '>' + m['content'] + '|\n' }}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"
TEMPLATES = {
    "plain": "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT,
    "with a system prompt of its own": "<system>Be kind.|\n{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT,
    # The prompt opens a thought, which a finished conversation does not show.
    "a thought in the prompt": "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT.replace(
        "<assistant>", "<assistant><think>"
    ),
    # The last answer gets an empty thought, and earlier ones lose theirs.
    "thoughts in the last answer": "{% for m in messages %}"
    "{{ '<' + m['role'] + '>' }}"
    "{% if m['role'] == 'assistant' and loop.last and '</think>' not in m['content'] %}<think></think>{% endif %}"
    "{{ (m['content'] if loop.last else m['content'].split('</think>')[-1]) + '|\n' }}"
    "{% endfor %}" + PROMPT,
    "no generation prompt": "{% for m in messages %}" + TURN + "{% endfor %}",
    "trims": "{% for m in messages %}" + TURN.replace("m['content']", "m['content']|trim") + "{% endfor %}" + PROMPT,
}  # fmt: skip
EVERY = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)


def turns(*texts: str) -> Turns:
    """u:… is a user's turn, a:… an assistant's, s:… the system's."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[text[0]], "content": text[2:]} for text in texts]


def answers(messages: Turns, template: str | None) -> list[str]:
    """The runs of learned tokens, as text."""
    tokenizer = character_tokenizer(template)
    ids, learned = conversation(tokenizer, messages)
    text = "".join(
        token if learn else "\0" for token, learn in zip(tokenizer.convert_ids_to_tokens(ids), learned, strict=True)
    )
    return [run for run in text.split("\0") if run]


@EVERY
@pytest.mark.parametrize(
    "messages",
    [
        turns("u:hi", "a:yes"),
        turns("u:hi", "a:yes", "u:and", "a:no"),
        turns("s:brief", "u:hi", "a:yes"),
        turns("a:yes", "u:and", "a:no"),  # begins with the assistant
        turns("u:hi", "a:yes", "u:and"),  # ends with the user
        turns("u:hi", "a:yes", "a:no"),
        turns("u:hi", "a:"),
        turns("u:assistant", "a:assistant"),  # an answer that is a header's word
        turns("u:yes", "a:yes", "u:yes", "a:yes"),
    ],
    ids=lambda messages: " ".join(turn["role"] for turn in messages) if isinstance(messages, list) else None,
)
def test_the_answers_and_their_ends_are_learned_and_nothing_else(messages: Turns, template: str) -> None:
    wanted = [turn["content"] + "|\n" for turn in messages if turn["role"] == "assistant"]
    assert answers(messages, template) == wanted


def test_a_thought_that_the_row_gives_is_learned_where_the_template_keeps_it() -> None:
    thoughtful = turns("u:hi", "a:<think>so</think>yes", "u:and", "a:<think>hm</think>no")
    template = TEMPLATES["thoughts in the last answer"]
    # The template opens a thought in the last answer by itself, and drops the earlier answer's.
    assert answers(thoughtful, template) == ["yes|\n", "hm</think>no|\n"]


def test_blanks_that_a_template_trims_are_not_learned_and_those_it_keeps_are() -> None:
    messages = turns("u:hi", "a: yes ")
    assert answers(messages, TEMPLATES["trims"]) == ["yes|\n"]
    assert answers(messages, TEMPLATES["plain"]) == [" yes |\n"]


def test_a_blank_between_the_prompt_and_the_answer_is_the_model_s_to_write() -> None:
    template = (
        "{% for m in messages %}"
        "{{ '[' + m['content'] + ']' if m['role'] == 'user' else ' ' + m['content'] + '|' }}"
        "{% endfor %}"
    )
    assert answers(turns("u:hi", "a:yes"), template) == [" yes|"]


def test_an_end_that_only_the_last_answer_has_is_learned_there_alone() -> None:
    template = (
        "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% if loop.last %}|{% endif %}{% endfor %}"
        + PROMPT
    )
    assert answers(turns("u:hi", "a:yes", "u:and", "a:no"), template) == ["yes", "no|"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        (
            CHAT.replace("m['content']", "(m['content'] if loop.last or m['role'] == 'user' else '...')"),
            "in turn 2 of 4",
        ),
        (CHAT + "{{ messages[1]['content'] }}", "repeats the assistant's answer in turn 2 of 4"),
        (CHAT + "{{ messages[1]['content']|length }}", "rewrites other turns by what turn 2 says"),
        ("{{ raise_exception('roles must alternate') }}", "refuses a row of 'messages': roles must alternate"),
        (
            "{% if messages[0]['role'] == 'user' %}{{ raise_exception('System role not supported') }}{% endif %}"
            + CHAT,
            "refuses a row of 'messages': System role not supported",
        ),
    ],
)
def test_a_template_that_hides_the_answers_is_refused_with_the_true_cause(template: str | None, says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        answers(turns("u:hi", "a:yes!", "u:and", "a:no"), template)


def test_a_template_that_wants_a_user_first_is_asked_no_question_without_one() -> None:
    template = (
        "{% if messages|selectattr('role', 'equalto', 'user')|list|length == 0 %}"
        "{{ raise_exception('no user query') }}{% endif %}" + TEMPLATES["plain"]
    )
    assert answers(turns("s:brief", "a:yes", "u:and", "a:no")[2:], template) == ["no|\n"]
    with pytest.raises(HoldfastError, match="no user query"):
        answers(turns("a:yes", "u:and", "a:no"), template)


def test_a_template_that_writes_the_date_writes_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + TEMPLATES["plain"]
    tokenizer, messages = character_tokenizer(template), turns("u:hi", "a:yes")

    class Day(datetime):
        passed = 0

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2025, 11, 20) + timedelta(days=cls.passed)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    ids = []
    for Day.passed in (0, 5):
        ids.append(conversation(tokenizer, messages))
    assert ids[0] == ids[1]
    assert "26 Jul 2024" in "".join(tokenizer.convert_ids_to_tokens(ids[0][0]))
