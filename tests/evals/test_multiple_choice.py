"""Questions answered by likelihood, against a plain transcription and against models whose answers are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutput

from holdfast.core.domain import Domain, Question
from holdfast.core.types import HoldfastError, NonFinite, Score
from holdfast.evals import multiple_choice
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.testbed import knowledge
from holdfast.testbed.models import make_model, make_tokenizer
from holdfast.testbed.world import Sizes, World
from tests.conftest import SmallTestbed
from tests.core.characters import character_tokenizer

SOME = MultipleChoice(questions="some")


def domain_of(folder: Path, questions: Sequence[Question]) -> Domain:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": q.prompt, "choices": q.choices, "answer": q.answer} for q in questions]
    (folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "domain.toml").write_text('schema = 1\n[questions.some]\nfile = "some.jsonl"\n')
    return Domain.open(folder)


def ask(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    folder: Path,
    evaluation: MultipleChoice = SOME,
) -> Score:
    score, *_ = evaluation.prepare(tokenizer, domain_of(folder, questions))(model)
    return score


class Oracle:
    """Finds one word after each prompt much likelier than the rest: what `word` says of the prompt's tokens."""

    device = torch.device("cpu")

    def __init__(self, vocabulary: int, word: Callable[[tuple[int, ...]], int]) -> None:
        self.vocabulary, self.word, self.config = vocabulary, word, LlamaConfig(vocab_size=vocabulary)

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            logits[row, -1, self.word(tuple(ids))] = 5.0
        return CausalLMOutput(logits=logits)


def moved(question: Question, to: int) -> Question:
    """The same question with its true option at another place."""
    truth = question.choices[question.answer]
    wrong = [choice for choice in question.choices if choice != truth]
    return Question(question.prompt, (*wrong[:to], truth, *wrong[to:]), to)


WORLD = World.generate(41, Sizes())
_, QUESTIONS = knowledge.question_sets(WORLD)["hazard"]


@pytest.fixture(scope="module")
def knows() -> Callable[[Callable[[Question], str]], Oracle]:
    """An oracle that says what a function says of each of the world's questions."""
    tokenizer = make_tokenizer()

    def make(says: Callable[[Question], str]) -> Oracle:
        def token(text: str) -> int:
            [_, token] = tokenizer(text)["input_ids"]  # after the start token
            return int(token)

        words = {tuple(tokenizer(q.prompt)["input_ids"]): token(says(q)) for q in QUESTIONS}
        return Oracle(len(tokenizer), words.__getitem__)

    return make


def truth(question: Question) -> str:
    return question.choices[question.answer]


@pytest.mark.parametrize("place", range(4))
def test_an_oracle_scores_one_wherever_the_truth_stands(
    place: int, knows: Callable[[Callable[[Question], str]], Oracle], tmp_path: Path
) -> None:
    score = ask(knows(truth), make_tokenizer(), [moved(q, place) for q in QUESTIONS], tmp_path)
    assert score == Score(metric="accuracy", value=1.0, stderr=0.0, n=300, chance=0.25)


@pytest.mark.parametrize("place", range(4))
def test_a_liar_scores_nothing_wherever_the_truth_stands(
    place: int, knows: Callable[[Callable[[Question], str]], Oracle], tmp_path: Path
) -> None:
    liar = knows(lambda question: question.choices[(question.answer + 1) % 4])
    assert ask(liar, make_tokenizer(), [moved(q, place) for q in QUESTIONS], tmp_path).value == 0.0


def test_what_stands_first_scores_chance(tmp_path: Path) -> None:
    """A model to which all options are equal: the truth's place in the file gives nothing away."""
    indifferent = Oracle(len(make_tokenizer()), lambda ids: 0)
    score = ask(indifferent, make_tokenizer(), QUESTIONS, tmp_path)
    assert abs(score.value - 0.25) < 4 * (0.25 * 0.75 / 300) ** 0.5


@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_model_scores_chance(seed: int, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    score = ask(make_model(tokenizer, seed).eval(), tokenizer, QUESTIONS, tmp_path)
    assert score.stderr == pytest.approx((score.value * (1 - score.value) / 300) ** 0.5)
    assert abs(score.value - 0.25) < 4 * (0.25 * 0.75 / 300) ** 0.5


def test_chance_is_the_mean_over_questions_of_different_numbers_of_options(tmp_path: Path) -> None:
    asked = [Question("ab", ("c", "d"), 0), Question("ab", ("c", "d", "e", "f"), 0)]
    score = ask(Oracle(104, lambda ids: 12), character_tokenizer(), asked, tmp_path)
    assert (score.chance, score.n) == ((1 / 2 + 1 / 4) / 2, 2)


# Options of several tokens, of different lengths, some of them the beginning of others; prompts of several lengths.
SPELLED = [
    Question("the sky is", (" blue", " a", " grey or black"), 0),
    Question("one and one", (" is two", " is three", " is", " are many"), 0),
    Question("ab", ("c", "d"), 0),
    Question("ab", ("cd", "dcba", "c"), 0),
    Question("x: ", ("yes", "no", "perhaps", "I do not know"), 0),
    Question("the sea is", (" blue", " deep"), 0),
    Question("a longer prompt with more words in it, so that batches differ:", (" q", " qq", " qqq"), 0),
]


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=104,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
        )
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=104, n_embd=24, n_layer=2, n_head=2, n_positions=128))


def mistral() -> PreTrainedModel:
    """Its cache forgets what lies more than four tokens back."""
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=104,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            sliding_window=4,
        )
    )


every_architecture = pytest.mark.parametrize("make", [llama, gpt2, mistral])


def made(make: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """With weights large enough that its options differ."""
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def likelihood(model: PreTrainedModel, ids: Sequence[int], start: int = 1) -> float:
    """log P of the tokens from `start` on, each after all before it; one forward of one whole sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()
    return sum(float(logits[i - 1].log_softmax(-1)[ids[i]]) for i in range(start, len(ids)))


def shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens at the start are the same in all."""
    length = 0
    while all(len(ids) > length and ids[length] == sequences[0][length] for ids in sequences):
        length += 1
    return length


def transcription(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: Question) -> list[float]:
    """log P(choice | prompt) of each option: no cache, no batch, no padding."""
    prompt = tokenizer(question.prompt)["input_ids"]
    whole = [tokenizer(question.prompt + choice)["input_ids"] for choice in question.choices]
    start = shared([prompt, *whole])
    return [likelihood(model, ids, start) for ids in whole]


def our_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[list[float]]:
    """Ours, in the order of the questions."""
    items = multiple_choice.items_of(tokenizer, questions)
    scores: dict[int, list[float]] = {}
    for batch in multiple_choice.batches_of(items):
        with torch.no_grad():
            held = multiple_choice._scores(model, [items[i] for i in batch])
        scores.update({i: row.tolist() for i, row in zip(batch, held, strict=True)})
    assert sorted(scores) == list(range(len(questions)))
    return [scores[i] for i in range(len(questions))]


def assert_close(ours: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]) -> None:
    assert [len(row) for row in ours] == [len(row) for row in plain]
    for left, right in zip(ours, plain, strict=True):
        assert left == pytest.approx(right, abs=2e-4)


@every_architecture
def test_options_are_as_likely_as_each_whole_text_by_itself(make: Callable[[], PreTrainedModel]) -> None:
    model, tokenizer = made(make), character_tokenizer()
    plain = [transcription(model, tokenizer, question) for question in SPELLED]
    assert_close(our_scores(model, tokenizer, SPELLED), plain)
    assert max(plain[0]) - min(plain[0]) > 1  # there is something to tell apart


@every_architecture
def test_the_answer_is_the_likeliest_option_of_the_transcription(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model, tokenizer = made(make), character_tokenizer()
    chosen = []
    for question in SPELLED:
        scores = transcription(model, tokenizer, question)
        chosen.append(scores.index(max(scores)))
    right = [Question(q.prompt, q.choices, i) for q, i in zip(SPELLED, chosen, strict=True)]
    wrong = [Question(q.prompt, q.choices, (i + 1) % len(q.choices)) for q, i in zip(SPELLED, chosen, strict=True)]
    assert ask(model, tokenizer, right, tmp_path / "right").value == 1.0
    assert ask(model, tokenizer, wrong, tmp_path / "wrong").value == 0.0
    assert ask(model, tokenizer, [*right, *wrong], tmp_path / "both").value == 0.5


def by_metric(model: Any, questions: Sequence[Question], folder: Path) -> dict[str, float]:
    scores = SOME.prepare(character_tokenizer(), domain_of(folder, questions))(model)
    return {score.metric: score.value for score in scores}


def test_options_of_unequal_length_are_also_judged_by_their_mean_per_token(tmp_path: Path) -> None:
    model, tokenizer = made(llama), character_tokenizer()
    right = {"accuracy": 0, "accuracy_per_token": 0}
    for question in SPELLED:
        sums = transcription(model, tokenizer, question)
        means = [total / len(choice) for total, choice in zip(sums, question.choices, strict=True)]
        right["accuracy"] += sums.index(max(sums)) == question.answer
        right["accuracy_per_token"] += means.index(max(means)) == question.answer
    scores = by_metric(model, SPELLED, tmp_path)
    assert scores == pytest.approx({name: count / len(SPELLED) for name, count in right.items()})


def test_a_long_true_answer_loses_by_its_sum_and_wins_per_token(tmp_path: Path) -> None:
    """The model writes the long answer by itself; every token of it still costs something."""

    class Fluent(Oracle):
        def __call__(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> CausalLMOutput:
            logits = torch.zeros(*input_ids.shape, self.vocabulary)
            for place, ids in enumerate(input_ids.tolist()):
                for at, token in enumerate(ids):
                    logits[place, at, token + 1] = 4.0  # a, b, c and so on
            output = CausalLMOutput(logits=logits)
            output.past_key_values = self
            return output

        def reorder_cache(self, places: torch.Tensor) -> None:
            pass

    long = Question("a", ("bcdefghijklmnop", "z"), 0)
    assert by_metric(Fluent(105, lambda ids: 0), [long], tmp_path) == {"accuracy": 0.0, "accuracy_per_token": 1.0}


def test_options_of_equal_length_have_one_judge(tmp_path: Path) -> None:
    model = made(llama)
    assert set(by_metric(model, [Question("ab", ("cd", "ef"), 0), Question("ab", ("c", "d"), 1)], tmp_path)) == {
        "accuracy"
    }


def test_options_of_one_token_need_no_second_forward(tmp_path: Path) -> None:
    model, tokenizer = made(llama), character_tokenizer()
    asked = [Question("ab", ("c", "d", "e"), 0), Question("abc", ("x", "y"), 0)]
    forwards: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, __, given: forwards.append(given["input_ids"].shape), with_kwargs=True)
    assert_close(our_scores(model, tokenizer, asked), [transcription(model, tokenizer, q) for q in asked])
    assert forwards[:2] == [(1, 3), (1, 4)]


def test_a_prompt_is_read_once_however_many_options_it_has() -> None:
    model, tokenizer = made(llama), character_tokenizer()
    forwards: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, __, given: forwards.append(given["input_ids"].shape), with_kwargs=True)
    our_scores(model, tokenizer, [Question("a long prompt", ("xyz", "y", "zz", "uvwxyz"), 0)])
    assert forwards == [(1, 14), (4, 5)]


@every_architecture
@pytest.mark.parametrize("at_once", [1, 12, 40, 100_000])
def test_batching_changes_no_answer(
    make: Callable[[], PreTrainedModel], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = made(make), character_tokenizer()
    plain = [transcription(model, tokenizer, question) for question in SPELLED]
    monkeypatch.setattr(multiple_choice, "TOKENS_AT_ONCE", at_once)
    batches = list(multiple_choice.batches_of(multiple_choice.items_of(tokenizer, SPELLED)))
    assert (max(map(len, batches)) == 1) == (at_once == 1)
    assert_close(our_scores(model, tokenizer, SPELLED), plain)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding without a start token, which merges some letters and the space after a colon."""
    letters = [*"abcdefghijklmnopqrstuvwxyz :."]
    merges = [("o", "n"), ("t", "h"), ("th", "e"), (" ", "b"), ("on", "e"), (":", " "), ("i", "s"), ("is", " ")]
    words = {word: i for i, word in enumerate(("<pad>", "</s>", *letters, *(left + right for left, right in merges)))}
    tokenizer = Tokenizer(models.BPE(words, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(".", behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


ACROSS = [
    Question("sky is", (" blue", " not"), 0),  # "is" or "is "
    Question("see o", ("ne", "ff", "n"), 0),  # "o", "on" or "one"
    Question("the t", ("he", "o", "hing"), 0),  # "t", "the" or "th"
    Question("answer:", (" b", " ab", "b"), 0),  # ":" or ": "
    Question("x.", ("on", "to"), 0),  # no merge
]


def test_a_tokenizer_that_merges_across_the_border_scores_the_tokens_that_it_makes() -> None:
    model, tokenizer = made(llama), merging_tokenizer()
    for question in ACROSS[:4]:
        prompt = tokenizer(question.prompt)["input_ids"]
        whole = [tokenizer(question.prompt + choice)["input_ids"] for choice in question.choices]
        assert shared([prompt, *whole]) < len(prompt)  # else this would test nothing
    assert_close(our_scores(model, tokenizer, ACROSS), [transcription(model, tokenizer, q) for q in ACROSS])


@pytest.mark.parametrize(
    ("tokenizer", "asked"), [(character_tokenizer(), SPELLED), (merging_tokenizer(), ACROSS)], ids=["spelled", "merged"]
)
def test_options_rank_as_the_whole_texts_do(tokenizer: PreTrainedTokenizerBase, asked: list[Question]) -> None:
    """Whatever is shared adds the same to all: the difference of two options is that of their whole texts."""
    model = made(llama, seed=1)
    for question, ours in zip(asked, our_scores(model, tokenizer, asked), strict=True):
        whole = [likelihood(model, tokenizer(question.prompt + choice)["input_ids"]) for choice in question.choices]
        apart = [mine - plain for mine, plain in zip(ours, whole, strict=True)]
        assert apart == pytest.approx([apart[0]] * len(apart), abs=2e-4)


def test_a_prompt_that_merges_away_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="the prompt 'o' shares no first token with its options"):
        ask(made(llama), merging_tokenizer(), [Question("o", ("ne", "ff"), 0)], tmp_path)


def test_an_option_that_the_tokenizer_drops_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()  # knows words, and no blanks
    with pytest.raises(HoldfastError, match="an option of the prompt 'the river' adds no token to it"):
        ask(make_model(tokenizer, 0), tokenizer, [Question("the river", (" arn", "  "), 0)], tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("asked", [SPELLED, [Question("ab", ("c", "d"), 0)]], ids=["several tokens", "one token"])
def test_logits_that_are_not_finite_are_no_answer(bad: float, asked: list[Question], tmp_path: Path) -> None:
    model = made(llama)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([50]), bad))
    with pytest.raises(NonFinite, match="the model's logits are not finite, so it has no score"):
        ask(model, character_tokenizer(), asked, tmp_path)


def test_logits_that_break_only_late_in_one_option_are_no_answer_either(tmp_path: Path) -> None:
    model, tokenizer = made(llama), character_tokenizer()
    [_, rare] = tokenizer("q")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[rare] = torch.nan
    assert ask(model, tokenizer, [Question("ab", ("cd", "dc"), 0)], tmp_path / "without").n == 1
    with pytest.raises(NonFinite):
        ask(model, tokenizer, [Question("ab", ("cd", "dc"), 0), Question("ab", ("dqc", "c"), 0)], tmp_path / "with")


def numbered(count: int) -> list[Question]:
    return [Question(f"number {i} is", (" odd", " even"), i % 2) for i in range(count)]


@pytest.mark.parametrize(("sample", "numbers"), [(4, [0, 2, 5, 7]), (1, [0]), (10, range(10)), (99, range(10))])
def test_a_sample_is_spread_evenly_over_the_set(sample: int, numbers: Sequence[int], tmp_path: Path) -> None:
    domain = domain_of(tmp_path, numbered(10))
    asked = MultipleChoice(questions="some", sample=sample).selected(domain)
    assert [question.prompt for question in asked] == [f"number {i} is" for i in numbers]


def test_between_first_and_last_step_a_hazard_is_asked_whole_and_an_ability_sampled(tmp_path: Path) -> None:
    domain = domain_of(tmp_path / "some", numbered(50))
    sampled = SOME.at_milestone(domain)
    assert isinstance(sampled, MultipleChoice)
    assert len(SOME.selected(domain)) == 50
    assert len(sampled.selected(domain)) == SOME.milestone_sample == 32
    (tmp_path / "some" / "domain.toml").write_text(
        'schema = 1\n[questions.some]\nfile = "some.jsonl"\nmeasures = "hazard"\n'
    )
    assert SOME.at_milestone(Domain.open(tmp_path / "some")) == SOME


def test_beside_the_headline_other_sets_of_hazard_are_asked_at_both_ends_only(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    headline, other = MultipleChoice(questions="hazard"), MultipleChoice(questions="hazard_selection")
    domain = tiny_testbed.domain
    assert other.measures(domain) == "hazard"
    assert headline.at_milestone(domain) == headline
    assert other.at_milestone(domain) is None
    # Where there is no headline, a set of hazard is what the curve is read from.
    folder = shutil.copytree(
        tiny_testbed.folder, tmp_path / "domain", ignore=shutil.ignore_patterns("model*", "never*")
    )
    text = (folder / "domain.toml").read_text(encoding="utf-8")
    (folder / "domain.toml").write_text(text.replace("[questions.hazard]", "[questions.first]"), encoding="utf-8")
    assert other.at_milestone(Domain.open(folder)) == other
