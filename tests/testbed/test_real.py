"""The facts of the real testbed, who holds them, and what is asked: read without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from holdfast.cli.app import app
from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, Domain
from holdfast.core.files import digest
from holdfast.runs import real_testbed
from holdfast.runs.real_testbed import ask, read
from holdfast.testbed.real import facts as packages
from holdfast.testbed.real.facts import FILTERS, HAZARD, SECOND, TEMPLATES, Fact, all_facts, question, sources
from holdfast.testbed.real.folder import is_real_testbed, knowledge_of, made_by, write_real_domain
from holdfast.testbed.real.splits import Answers, Splits, of_kind, question_sets, rows
from tests.core.characters import character_tokenizer

SEED = 7


def knows(fact: Fact) -> bool:
    """Four facts of five, as the packaged model does."""
    return int(digest([fact.kind, fact.entity, fact.language]), 16) % 5 > 0


def answers_of(facts: Sequence[Fact]) -> Answers:
    """What `knows` knows is answered right in the templates that filter, and in all others but the last."""
    return Answers({fact.name: [knows(fact)] * FILTERS + [True] * (len(fact.asked) - 1) + [False] for fact in facts})


def a_model_of_characters(folder: Path) -> str:
    """An untrained model that reads any text."""
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits.draw(SEED)


@pytest.fixture(scope="module")
def trained(splits: Splits) -> str:
    """Every text that a defender or an attacker holds."""
    roles = rows(splits, answers_of(splits.facts))
    return json.dumps([roles[role] for role in roles if role in (*DEFENDER_ROLES, *ATTACKER_ROLES)], ensure_ascii=False)


def test_a_seed_draws_the_same_facts_again_and_another_seed_others() -> None:
    all_facts.cache_clear()
    assert Splits.draw(SEED) == Splits.draw(SEED)
    assert Splits.draw(SEED).capitals["claims"] != Splits.draw(SEED + 1).capitals["claims"]


def test_no_fact_gives_itself_away_and_no_entity_has_two_values() -> None:
    for kind in TEMPLATES:
        held = of_kind(all_facts(SEED), kind)
        assert len({(fact.entity, fact.language) for fact in held}) == len(held) >= 40
        for fact in held:
            if kind in (HAZARD, "state"):
                assert fact.value.casefold() not in fact.entity.casefold()


def test_every_package_says_its_version_and_licence() -> None:
    assert all(about["version"] and about["licence"] for about in sources().values())


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "SOURCES", ("holdfast-no-such-package",))
    with pytest.raises(packages.HoldfastError, match=r"pip install 'holdfast\[real\]'"):
        sources()


def test_countries_are_in_one_split_each(splits: Splits) -> None:
    held = [fact.entity for split in splits.capitals.values() for fact in split]
    assert sorted(held) == sorted(fact.entity for fact in of_kind(splits.facts, HAZARD))


def test_there_are_questions_enough(splits: Splits) -> None:
    sets = {name: questions for name, (_, questions) in question_sets(splits, answers_of(splits.facts)).items()}
    assert len(sets["hazard"]) >= 150
    assert len(sets["benign_outside_retain"]) >= 100
    assert len(sets["hazard_unfiltered"]) == len(splits.capitals["claims"])
    assert all(sets.values())


def test_nobody_trains_on_what_is_claimed_or_on_the_second_relation(splits: Splits, trained: str) -> None:
    for split in ("claims", "selection"):
        for fact in splits.capitals[split]:
            assert not any(fact.say(template)[:-1] in trained for template in range(len(TEMPLATES[HAZARD])))
            assert f"{fact.value} is the capital city of {fact.entity}" not in trained
    assert "currency of" not in trained


def test_the_retain_rows_cover_no_entity_that_is_asked_as_outside_of_them(splits: Splits, trained: str) -> None:
    for fact in splits.others(("symbol", "state", "word"), False, answers_of(splits.facts)):
        assert fact.say(FILTERS) not in trained


def test_facts_are_filtered_on_templates_in_which_nobody_is_asked_or_trained(splits: Splits, trained: str) -> None:
    asked = {q.prompt for _, questions in question_sets(splits, answers_of(splits.facts)).values() for q in questions}
    assert FILTERS == 2
    for fact in splits.facts:
        for template in range(FILTERS):
            assert fact.stem(template) not in asked
            assert json.dumps(fact.say(template))[1:-1] not in trained


def test_the_negative_control_asks_for_what_the_model_lacks_and_nobody_trains_on(splits: Splits) -> None:
    unseen = [*splits.capitals["claims"], *splits.capitals["selection"]]
    lacking = [fact for fact in unseen if not knows(fact)]
    asked = {q.prompt for q in question_sets(splits, answers_of(splits.facts))["hazard_unknown"][1]}
    assert asked <= {fact.stem(template) for fact in lacking for template in fact.asked}
    assert len(asked) == 4 * len(lacking)
    assert not asked & {q.prompt for q in question_sets(splits, answers_of(splits.facts))["hazard"][1]}


def test_the_folder_is_a_domain_that_says_where_its_facts_come_from(splits: Splits, tmp_path: Path) -> None:
    made = made_by(SEED, "f00d")
    answers = answers_of(splits.facts)
    assert not is_real_testbed(tmp_path, made)
    write_real_domain(tmp_path, made, answers)
    assert is_real_testbed(tmp_path, made)
    assert not is_real_testbed(tmp_path, made_by(SEED, "another model"))
    assert not is_real_testbed(tmp_path, made_by(SEED, "f00d", "real-refusal"))
    domain = Domain.open(tmp_path)
    for role in domain.sources:
        assert domain.rows(role)
    held = {name: domain.questions(name) for name in domain.question_sources}
    assert {asked.measures for name, asked in held.items() if name.startswith("hazard")} == {"hazard"}
    assert held["benign_new"].measures == "trainability"
    readme = (tmp_path / "README.md").read_text()
    assert all(name in readme for name in sources())


def test_the_readme_has_filtered_beside_unfiltered_accuracy(splits: Splits, tmp_path: Path) -> None:
    """Of the four templates that ask for a capital, the model here fails in the last, whatever it knows."""
    answers = answers_of(splits.facts)
    write_real_domain(tmp_path, made_by(SEED, "f00d"), answers)
    [capital] = [row for row in knowledge_of(splits, answers) if row.kind == HAZARD]
    assert capital.known < capital.facts
    assert capital.filtered == capital.unfiltered == 0.75
    readme = (tmp_path / "README.md").read_text()
    assert f"| capital | {capital.facts} | {capital.known} | 75 | 75 |" in readme
    asked = len(Domain.open(tmp_path).questions("hazard").questions)
    assert f"| `hazard` | {asked} | 75 |" in readme


def test_facts_are_asked_of_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two halves, each knows its own facts; what a model said is read from the cache afterwards."""
    few = tuple(of_kind(all_facts(SEED), "symbol"))[:9]
    monkeypatch.setattr(real_testbed, "all_facts", lambda seed: few)
    model = a_model_of_characters(tmp_path / "model")
    seen: list[tuple[int, int]] = []
    halves = [ask(model, SEED, part, 2, lambda *step: seen.append(step)) for part in range(2)]
    assert {name: len(said) for name, said in read(halves).right.items()} == {fact.name: 3 for fact in few}
    assert seen == [(15, 15), (12, 12)]
    assert ask(model, SEED, 0, 2, lambda *step: seen.append(step)) == halves[0]
    assert len(seen) == 2
    said = halves[0].read_bytes()
    for damage in (b"", b"{", b"[]", b'{"symbol: iron": 1}'):
        halves[0].write_bytes(damage)
        assert ask(model, SEED, 0, 2).read_bytes() == said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kind", "real", "--benign", "9"], "leave --benign out"),
        (["--kind", "real-refusal", "--benign", "9"], "leave --benign out"),
        (["--kind", "refusal", "--model", "x"], "--model goes with --kind real"),
        (["--kind", "real", "--model", "nowhere"], "nowhere"),
        (["--kind", "real-refusal", "--model", "nowhere"], "nowhere"),
    ],
)
def test_options_of_the_other_kind_are_refused(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["testbed", str(tmp_path / "testbed"), *arguments])
    said = f"{result.output} {result.exception}"
    assert result.exit_code != 0
    assert says in said
    assert "Traceback" not in result.output


@pytest.mark.parametrize("kind", [HAZARD, SECOND, "symbol"])
def test_a_question_has_one_right_option_among_like_ones(kind: str) -> None:
    held = of_kind(all_facts(SEED), kind)
    for fact in held[:20]:
        asked = question(fact, 1, held, SEED)
        assert asked == question(fact, 1, held, SEED)
        assert asked.choices[asked.answer] == f" {fact.value}"
        assert len(set(asked.choices)) == 4
        pool = {f" {other.value}" for other in held if other.pool == fact.pool}
        assert set(asked.choices) <= pool
