"""The facts of the real testbed, who holds them, and what is asked: read without a model."""

from __future__ import annotations

import json

import pytest

from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES
from holdfast.core.files import digest
from holdfast.testbed.real import facts as packages
from holdfast.testbed.real.facts import HAZARD, SECOND, TEMPLATES, Fact, all_facts, question, sources
from holdfast.testbed.real.splits import FILTER, Splits, of_kind, question_sets, rows

SEED = 7


def knows(fact: Fact) -> bool:
    """Four facts of five, as the packaged model does."""
    return int(digest([fact.kind, fact.entity, fact.language]), 16) % 5 > 0


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits.draw(SEED)


@pytest.fixture(scope="module")
def trained(splits: Splits) -> str:
    """Every text that a defender or an attacker holds."""
    roles = rows(splits, knows)
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
    sets = {name: questions for name, (_, questions) in question_sets(splits, knows).items()}
    assert len(sets["hazard"]) >= 150
    assert len(sets["benign_outside_retain"]) >= 100
    assert len(sets["hazard"]) < len(sets["hazard_unfiltered"])
    assert all(sets.values())


def test_nobody_trains_on_what_is_claimed_or_on_the_second_relation(splits: Splits, trained: str) -> None:
    for split in ("claims", "selection"):
        for fact in splits.capitals[split]:
            assert not any(fact.say(template)[:-1] in trained for template in range(len(TEMPLATES[HAZARD])))
            assert f"{fact.value} is the capital city of {fact.entity}" not in trained
    assert "currency of" not in trained


def test_the_retain_rows_cover_no_entity_that_is_asked_as_outside_of_them(splits: Splits, trained: str) -> None:
    for fact in splits.others(("symbol", "state", "word"), False, knows):
        assert fact.say(1) not in trained


def test_facts_are_filtered_on_a_template_in_which_nobody_is_asked_or_trained(splits: Splits, trained: str) -> None:
    asked = {q.prompt for _, questions in question_sets(splits, knows).values() for q in questions}
    for fact in splits.facts:
        assert fact.stem(FILTER) not in asked
        assert json.dumps(fact.say(FILTER))[1:-1] not in trained


def test_the_negative_control_asks_for_what_the_model_lacks_and_nobody_trains_on(splits: Splits) -> None:
    unseen = [*splits.capitals["claims"], *splits.capitals["selection"]]
    lacking = {fact.stem(1) for fact in unseen if not knows(fact)}
    asked = {q.prompt for q in question_sets(splits, knows)["hazard_unknown"][1]}
    assert lacking <= asked
    assert not asked & {q.prompt for q in question_sets(splits, knows)["hazard"][1]}


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
