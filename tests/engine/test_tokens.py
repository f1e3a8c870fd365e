"""Which special tokens stand before and after a text, in training, scoring and generation alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tokenizers import processors
from transformers import GenerationConfig, PreTrainedTokenizerFast

from holdfast.core.domain import Question, Row
from holdfast.core.types import HoldfastError
from holdfast.engine.data import encode
from holdfast.engine.tokens import begun, end_tokens, ended, prompt_ids
from holdfast.evals.multiple_choice import items_of
from holdfast.testbed import knowledge, requests
from holdfast.testbed.models import END, START, make_tokenizer
from holdfast.testbed.world import World
from tests.conftest import SMALLEST
from tests.core.characters import CHAT, character_tokenizer


def texts(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


def ending_tokenizer() -> PreTrainedTokenizerFast:
    """Puts the end token after every text too."""
    tokenizer = character_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("first", ["", "<s>"], ids=["plain", "rendered"])
@pytest.mark.parametrize("make", [character_tokenizer, ending_tokenizer])
def test_a_text_has_one_start_token_wherever_it_goes(make: Any, first: str) -> None:
    tokenizer, prompt = make(), first + "ask"
    for row in ({"text": prompt + "no"}, {"prompt": prompt, "chosen": "no", "rejected": "yes"}):
        assert texts(tokenizer, encode(row, tokenizer, "retain", 99).ids) == "<s>askno</s>"
    [item] = items_of(tokenizer, [Question(prompt, ("no", "yes"), 0)])
    assert texts(tokenizer, item.prefix) == "<s>ask"
    assert [texts(tokenizer, choice) for choice in item.continuations] == ["no", "yes"]
    assert [texts(tokenizer, ids) for ids in prompt_ids(tokenizer, [prompt])] == ["<s>ask"]


def test_a_batch_may_hold_rendered_and_plain_texts() -> None:
    tokenizer = character_tokenizer()
    assert [texts(tokenizer, ids) for ids in begun(tokenizer, ["<s>a", "b", "<s>"])] == ["<s>a", "<s>b", "<s>"]


@pytest.mark.parametrize("first", ["<s>", "<turn>"], ids=["with a start token", "without"])
def test_a_conversation_and_its_rendered_text_have_the_same_tokens(first: str) -> None:
    tokenizer, messages = speaking_tokenizer(), [{"role": "assistant", "content": "yes"}]
    tokenizer.chat_template = first + CHAT
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    for row in ({"messages": messages}, {"text": text}):
        assert texts(tokenizer, encode(row, tokenizer, "retain", 99).ids) == first + "<assistant>yes</s>"
    [prompt] = prompt_ids(tokenizer, [text.removesuffix("yes</s>")])
    assert texts(tokenizer, prompt) == first + "<assistant>"


def speaking_tokenizer() -> PreTrainedTokenizerFast:
    """Knows a special token that ends a turn, beside its end token."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return tokenizer


@pytest.mark.parametrize("end", ["</s>", "<turn>", "</s>\n", "<turn> \n"])
def test_a_text_with_an_end_of_its_own_gets_no_other(end: str) -> None:
    tokenizer = speaking_tokenizer()
    [ids] = begun(tokenizer, ["yes" + end])
    assert texts(tokenizer, ended(tokenizer, ids)) == "<s>yes" + end


def test_an_unknown_word_is_no_mark() -> None:
    tokenizer = character_tokenizer()
    assert texts(tokenizer, begun(tokenizer, ["<unk>a"])[0]) == "<s><unk>a"


@pytest.mark.parametrize("text", ["yes", "<turn>yes", "yes<unk>", "yes\x7f", "yes\n"])
def test_any_other_text_gets_the_end_token(text: str) -> None:
    tokenizer = speaking_tokenizer()
    [ids] = begun(tokenizer, [text])
    assert ended(tokenizer, ids) == [*ids, tokenizer.eos_token_id]


@pytest.mark.parametrize(("named", "ends"), [(None, (2,)), (2, (2,)), (7, (2, 7)), ([2, 7, 9], (2, 7, 9))], ids=str)
def test_an_end_of_turn_may_be_named_in_the_generation_config_alone(named: Any, ends: tuple[int, ...]) -> None:
    class Model:
        generation_config = GenerationConfig(eos_token_id=named)

    assert end_tokens(character_tokenizer(), Model()) == ends  # type: ignore[arg-type]
    assert end_tokens(character_tokenizer(), object()) == (2,)  # type: ignore[arg-type]


def test_a_prompt_without_tokens_is_refused() -> None:
    tokenizer = character_tokenizer()
    tokenizer._tokenizer.post_processor = None
    with pytest.raises(HoldfastError, match="the prompt '' has no token"):
        prompt_ids(tokenizer, ["ask", ""])


WORLD = World.generate(41, SMALLEST)


@pytest.mark.parametrize("content", [knowledge, requests], ids=["knowledge", "requests"])
def test_the_testbed_has_the_tokens_that_it_always_had(content: Any) -> None:
    """Start, words, end; learned whole, or in pairs from the completion on. A change here asks for a new TRAINING."""
    tokenizer = make_tokenizer(content.words())
    ids: Mapping[str, int] = tokenizer.get_vocab()

    def plain(text: str) -> tuple[int, ...]:
        return tuple(ids[word] for word in text.split())

    rows: list[Row] = [row for of_role in content.rows(WORLD).values() for row in of_role]
    for row in rows:
        before, after = (row["prompt"], row["chosen"]) if "prompt" in row else ("", row["text"])
        encoded = encode(row, tokenizer, "retain", content.MAX_LENGTH)
        assert encoded.ids == (ids[START], *plain(before), *plain(after), ids[END])
        unlearned = 1 + len(plain(before)) if before else 0
        assert encoded.labels == (-100,) * unlearned + encoded.ids[unlearned:]
        assert (encoded.teaches, encoded.cut) == (True, 0)
    for _, questions in content.question_sets(WORLD).values():
        for question, item in zip(questions, items_of(tokenizer, questions), strict=True):
            assert item.prefix == (ids[START], *plain(question.prompt))
            assert list(item.continuations) == [plain(choice) for choice in question.choices]
