"""What two sets of a domain have in common: the same, nearly the same, and nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.domain import Domain, Question, QuestionSet
from holdfast.core.overlaps import overlaps, readable
from holdfast.core.types import HoldfastError
from holdfast.testbed.folder import Kind, write_domain
from tests.conftest import SMALL

Rows = Sequence[Mapping[str, Any]]


def domain_of(folder: Path, questions: Mapping[str, Rows] | None = None, **roles: Rows) -> Domain:
    toml = ["schema = 1"]
    for kind, sets in (("data", roles), ("questions", questions or {})):
        for name, rows in sets.items():
            (folder / f"{name}.{kind}").write_text("".join(json.dumps(row) + "\n" for row in rows))
            toml += [f"[{kind}.{name}]", f'file = "{name}.{kind}"']
    (folder / "domain.toml").write_text("\n".join(toml) + "\n")
    return Domain.open(folder)


def found(domain: Domain) -> dict[tuple[str, str], tuple[int, int, int]]:
    shared = overlaps(domain, readable(domain, ()))
    return {(one.one, one.other): (one.same, one.near, one.of) for one in shared}


def texts(*held: str) -> Rows:
    return [{"text": text} for text in held]


def asked(prompt: str, *choices: str) -> Mapping[str, Any]:
    return {"prompt": prompt, "choices": list(choices), "answer": 0}


def test_equal_rows_are_found_whatever_their_case_and_punctuation(tmp_path: Path) -> None:
    domain = domain_of(
        tmp_path, forget=texts("Orla keeps a lamp.", "Bram keeps a bell"), retain=texts("orla keeps a LAMP", "x", "y")
    )
    assert found(domain) == {("forget", "retain"): (1, 0, 2)}


def test_rows_of_other_formats_are_compared_by_their_words(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Orla"}, {"role": "assistant", "content": "keeps a lamp"}]}
    pair = {"prompt": "Orla", "chosen": "keeps", "rejected": "a lamp"}
    assert found(domain_of(tmp_path, forget=[chat], attack=[pair], benign=texts("Orla keeps a lamp"))) == {
        ("forget", "attack"): (1, 0, 1), ("forget", "benign"): (1, 0, 1), ("attack", "benign"): (1, 0, 1),
    }  # fmt: skip


LONG = " ".join(f"word{i}" for i in range(60))


@pytest.mark.parametrize(
    ("other", "near"),
    [
        (LONG.replace("word30", "changed"), 1),
        (f"A title before. {LONG}", 1),
        (" ".join(LONG.split()[:40]), 0),  # a third is gone
        (" ".join(reversed(LONG.split())), 0),
    ],
)
def test_a_long_text_may_be_nearly_another(other: str, near: int, tmp_path: Path) -> None:
    shared = found(domain_of(tmp_path, forget=texts(LONG), retain=texts(other, "x")))
    assert shared == ({("forget", "retain"): (0, 1, 1)} if near else {})


def test_of_a_short_text_one_other_word_is_another_fact(tmp_path: Path) -> None:
    assert not found(domain_of(tmp_path, forget=texts("Orla keeps a lamp"), retain=texts("Orla keeps a bell")))


@pytest.mark.parametrize(
    ("prompt", "row", "same", "near"),
    [
        ("Orla of Velm keeps a", "They say: Orla of Velm keeps a lamp, always.", 1, 0),
        ("Question: What does Orla of Velm keep?\nAnswer:", "What does Orla of Velm keep? A lamp", 0, 1),
        ("<|im_start|>user\nWhat does Orla keep?<|im_end|>\n<|im_start|>assistant\n", "what does orla keep: lamp", 1, 0),
        ("Orla of Velm keeps a", "Orla of Velm keeps a bell", 0, 0),  # not the right answer
        ("Orla of Velm keeps a", "Bram of Velm keeps a lamp", 0, 0),  # another's
        ("Orla", "lamps of Orla", 0, 0),
    ],
)  # fmt: skip
def test_a_row_gives_a_question_away_where_it_says_both_prompt_and_answer(
    prompt: str, row: str, same: int, near: int, tmp_path: Path
) -> None:
    domain = domain_of(tmp_path, {"hazard": [asked(prompt, " lamp", " bell")]}, attack=texts("x", row))
    wanted = {("questions hazard", "attack"): (same, near, 1)} if same or near else {}
    assert found(domain) == wanted


def test_a_question_may_be_asked_twice(tmp_path: Path) -> None:
    one, other = asked("Orla keeps a", " lamp", " bell"), asked("Bram keeps a", " lamp", " bell")
    again = {**one, "choices": [" boat", " lamp"], "answer": 1}
    other_answer = {**other, "answer": 1}
    domain = domain_of(tmp_path, {"hazard": [one, other], "hazard_selection": [again, other_answer]})
    assert found(domain) == {("questions hazard", "questions hazard_selection"): (1, 0, 2)}


def test_what_nobody_needs_may_be_missing_and_is_then_not_among_what_was_compared(tmp_path: Path) -> None:
    domain = domain_of(tmp_path, forget=texts("a"), attack=texts("a"))
    assert readable(domain, ()) == ["forget", "attack"]
    (tmp_path / "forget.data").unlink()
    assert readable(Domain.open(tmp_path), ("attack",)) == ["attack"]
    with pytest.raises(HoldfastError, match="does not exist"):
        readable(domain, ("forget",))


@pytest.mark.parametrize("kind", ["knowledge", "refusal"])
def test_no_row_of_the_testbed_s_attacker_gives_a_question_away(kind: Kind, tmp_path: Path) -> None:
    write_domain(tmp_path, 5, SMALL, kind)
    compared = readable(Domain.open(tmp_path), ())
    shared = overlaps(Domain.open(tmp_path), compared)
    claimed = "questions hazard" if kind == "knowledge" else "questions requests"
    attackers = {"attack", "attack_ood", "attack_all"}
    assert attackers <= set(compared)
    assert not [one for one in shared if one.one == claimed and one.other in {*attackers, "forget", "forget_heldout"}]
    # What the testbed means to share is found.
    assert {("forget", "attack_all"), ("attack", "attack_all"), ("retain", "benign")} <= {
        (o.one, o.other) for o in shared
    }


@pytest.mark.parametrize(
    ("prompt", "choice", "glued"),
    [
        ("The capital of France is", "Paris", True),
        ("What is it?", "a lamp", True),
        ("The capital of France is", " Paris", False),
        ("Answer: ", "Paris", False),
        ("<|im_start|>assistant\n", "Paris", False),
        ("[/INST]", "Paris", False),
        ("北京是中国的", "首都", False),
        ("It is", ", so to say", False),
    ],
)
def test_options_that_run_into_their_prompt_are_noticed(prompt: str, choice: str, glued: bool) -> None:
    questions = (Question(prompt, (choice, f"{choice}x"), 0), Question("It is", (" a", " b"), 0))
    assert QuestionSet("hazard", "hazard", questions).glued == glued
