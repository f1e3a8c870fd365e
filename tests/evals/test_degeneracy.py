"""How much of a model's own text repeats itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.core.domain import Domain
from holdfast.core.types import NonFinite, Score
from holdfast.engine.greedy import greedy
from holdfast.evals.degeneracy import Degeneracy
from holdfast.evals.generation import sharing
from tests.conftest import SmallTestbed
from tests.evals.writer import Writer


def domain_of(folder: Path, prompts: Sequence[str], measures: str = "ability") -> Domain:
    rows = [{"prompt": prompt, "choices": [" moss", " reef"], "answer": 0} for prompt in prompts]
    (folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "domain.toml").write_text(f'schema = 1\n[questions.some]\nfile = "some.jsonl"\nmeasures = "{measures}"\n')
    return Domain.open(folder)


PROMPTS = [
    "the river of",
    "the coat of beast bal",
    "what",
    "ask village cam",
    "the roof",
    "for beast dim cel the diet is",
]


def talker(says: Callable[[int], int]) -> Writer:
    """Says what `says` gives, token by token, whatever it is asked."""
    return Writer(lambda _: [says(place) for place in range(16)], 300)


def measured(says: Callable[[int], int], testbed: SmallTestbed, folder: Path, **changes: Any) -> Score:
    domain = domain_of(folder, PROMPTS)
    [score] = Degeneracy(**changes).prepare(testbed.model.load_tokenizer(), domain)(talker(says))  # type: ignore[arg-type]
    return score


def test_a_model_that_says_one_word_repeats_itself(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    score = measured(lambda i: 7, tiny_testbed, tmp_path)
    assert score == Score(
        metric="repetition", value=pytest.approx(1 - 1 / 15), stderr=pytest.approx(0.0, abs=1e-9), n=6
    )


def test_a_model_that_never_says_a_word_twice_does_not(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    assert measured(lambda i: 10 + i, tiny_testbed, tmp_path).value == 0.0


def test_a_word_may_return_and_a_phrase_not(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    words = [5, 6, 7, 5, 8, 6, 5, 9, 7, 6, 8, 10, 5, 11, 6, 12]
    assert measured(lambda i: words[i], tiny_testbed, tmp_path).value == 0.0
    assert measured(lambda i: words[i], tiny_testbed, tmp_path, ngram=1).value == pytest.approx(1 - 8 / 16)


@pytest.mark.parametrize(("ngram", "value"), [(1, 1 - 4 / 16), (2, 1 - 4 / 15), (4, 1 - 4 / 13), (16, 0.0), (17, 0.0)])
def test_a_loop_of_four_words_is_counted_by_n(
    ngram: int, value: float, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    assert measured(lambda i: 20 + i % 4, tiny_testbed, tmp_path, ngram=ngram).value == pytest.approx(value)


@pytest.mark.parametrize(("end", "value"), [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.5), (9, 1 - 1 / 8)])
def test_what_comes_after_the_end_does_not_count(
    end: int, value: float, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    eos = tiny_testbed.model.load_tokenizer().eos_token_id
    score = measured(lambda i: eos if i == end else 7, tiny_testbed, tmp_path)
    assert score.value == pytest.approx(value)


def test_an_end_of_turn_that_only_the_generation_config_names_ends_a_text(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    model = talker(lambda i: 9 if i == 1 else 7)
    model.generation_config = GenerationConfig(eos_token_id=[8, 9])  # type: ignore[attr-defined]
    probe = Degeneracy().prepare(tiny_testbed.model.load_tokenizer(), domain_of(tmp_path, PROMPTS))
    with sharing():
        assert probe(model)[0].value == 0.0  # type: ignore[arg-type]
        model.generation_config.eos_token_id = 8  # type: ignore[attr-defined]
        assert probe(model)[0].value == pytest.approx(1 - 3 / 15)  # type: ignore[arg-type]


def talkative(testbed: SmallTestbed, seed: int) -> PreTrainedModel:
    """An untrained model with outspoken opinions, whose texts end at different lengths, or never."""
    model = testbed.model.load()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
        model.lm_head.weight[12:] = 0.0  # few words, so that they come again
    return model


def plain_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int
) -> list[list[int]]:
    """What `generate` gives, one prompt at a time, without the end token."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
        )
        text = whole[0, ids.shape[1] :].tolist()
        texts.append([token for token in text if token != tokenizer.eos_token_id])
    return texts


def repetition(text: Sequence[int], n: int) -> float:
    """seq-rep-n of Welleck et al.: 1 - distinct n-grams / n-grams."""
    grams = [" ".join(map(str, text[i : i + n])) for i in range(len(text)) if i + n <= len(text)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


@pytest.mark.parametrize("ngram", [1, 2, 4])
def test_equals_seq_rep_n_of_generate_s_greedy_texts(ngram: int, tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    tokenizer = tiny_testbed.model.load_tokenizer()
    probe = Degeneracy(ngram=ngram).prepare(tokenizer, domain_of(tmp_path, PROMPTS))
    lengths, values = set[int](), set[float]()
    for seed in range(5):
        model = talkative(tiny_testbed, seed)
        texts = plain_texts(model, tokenizer, PROMPTS, 16)
        shares = [repetition(text, ngram) for text in texts]
        [score] = probe(model)
        mean = sum(shares) / 6
        assert score.value == pytest.approx(mean)
        assert score.stderr == pytest.approx((sum((share - mean) ** 2 for share in shares) / 5 / 6) ** 0.5)
        lengths |= set(map(len, texts))
        values.add(score.value)
    assert 16 in lengths  # some texts go on to the last token,
    assert len(lengths) > 2  # others end before it,
    assert len(values) > 2  # and models differ


@pytest.mark.parametrize(("prompts", "asked"), [(3, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5]), (99, [0, 1, 2, 3, 4, 5])])
def test_prompts_are_spread_evenly_over_the_ability_questions(
    prompts: int, asked: list[int], tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = tiny_testbed.model.load_tokenizer(), talkative(tiny_testbed, 0)
    seen: list[list[int]] = []

    def noting(model: PreTrainedModel, prompts: Sequence[Sequence[int]], *more: Any) -> list[list[int]]:
        seen.extend(map(list, prompts))
        return greedy(model, prompts, *more)

    monkeypatch.setattr("holdfast.engine.greedy.greedy", noting)
    [score] = Degeneracy(prompts=prompts).prepare(tokenizer, domain_of(tmp_path, PROMPTS))(model)
    assert score.n == len(asked)
    assert sorted(seen) == sorted(tokenizer(PROMPTS[i])["input_ids"] for i in asked)


def test_hazardous_questions_are_never_continued(tmp_path: Path) -> None:
    assert not Degeneracy().available(domain_of(tmp_path, PROMPTS, "hazard"))


def test_logits_that_break_in_the_midst_of_a_text_are_no_score(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    model, tokenizer = talkative(tiny_testbed, 0), tiny_testbed.model.load_tokenizer()
    probe = Degeneracy().prepare(tokenizer, domain_of(tmp_path, PROMPTS))
    probe(model)
    said = {token for text in plain_texts(model, tokenizer, PROMPTS, 15) for token in text}
    asked = {token for prompt in PROMPTS for token in tokenizer(prompt)["input_ids"]}
    with torch.no_grad():
        model.get_input_embeddings().weight[min(said - asked)] = torch.nan
    with pytest.raises(NonFinite, match="its text has no score"):
        probe(model)
