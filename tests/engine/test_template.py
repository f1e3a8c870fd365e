"""Chat templates that loop, eat memory or crash are refused before they run in this process."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.core.types import HoldfastError
from holdfast.engine import template
from holdfast.engine.data import encode_all
from tests.core.characters import CHAT, character_tokenizer

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}

HARM = {
    "loops over a long row alone": (
        "{% if messages[0].content|length > 9 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}" + CHAT,
        "does not end within 1 s",
    ),
    "allocates": ("{{ 'a' * 10000000000 }}", "takes too much memory"),
    "writes": ("{% for m in messages %}{{ m.content * 6000000 }}{% endfor %}", "takes too much memory"),
}

ERRORS = {
    "TypeError": "{{ messages[0]['content'] + 1 }}",
    "ZeroDivisionError": "{{ 1 // 0 }}",
    "OverflowError": "{{ range(10**9) | list }}",
    "RecursionError": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "Expected an expression": "{% for %}",
    "is a int, not a text": 7,
    "none is the default": {"x": "y"},
}


@pytest.mark.situation("hostile input", "a chat template")
@pytest.mark.parametrize("what", HARM)
def test_a_template_that_would_harm_this_process(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harmful, said = HARM[what]
    if "does not end" in said:  # what takes memory may take a slow processor more than this second
        monkeypatch.setattr(template, "SECONDS", 1)
    tokenizer = character_tokenizer(harmful)
    rows: list[Any] = [ROW] * 40
    rows[17] = {"messages": [{"role": "user", "content": "long " * 9}, ROW["messages"][1]]}
    for _ in range(2):  # the second time it is known
        with pytest.raises(HoldfastError, match=f"chat template {said}.*give rows of 'text'"):
            encode_all(rows, tokenizer, "retain", 64)


@pytest.mark.situation("hostile input", "a chat template")
@pytest.mark.parametrize("said", ERRORS)
def test_whatever_a_template_raises_is_a_sentence(said: str) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = ERRORS[said]
    with pytest.raises(HoldfastError, match=said) as refused:
        encode_all([ROW], tokenizer, "retain", 64)
    assert len(str(refused.value).splitlines()) == 1


def test_a_template_is_tried_once_a_process_and_not_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    monkeypatch.setattr(template, "_fault", lambda tokenizer, sample: rendered.append(len(sample)))
    tokenizer = character_tokenizer(CHAT + "{# once #}")
    for _ in range(3):
        encode_all([ROW] * 500, tokenizer, "retain", 64)
    [sample] = rendered
    assert sample <= 18
