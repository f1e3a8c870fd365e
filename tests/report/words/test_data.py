"""The sentences on the data: each stands only where the findings bear it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdfast.core.findings import Cut, Findings, Overlap, RunTogether
from holdfast.report.words.data import holdings, measured_on, objections, shared
from tests.report.synthetic import cell

COMPARED = ["forget", "retain", "attack", "attack_all", "questions hazard", "questions hazard_selection"]


def findings(*overlaps: tuple[str, str, int, int, int], **more: Any) -> Findings:
    held = [Overlap(one=one, other=other, same=same, near=near, of=of) for one, other, same, near, of in overlaps]
    return Findings(compared=COMPARED, overlaps=held, **more)


HAZARD = ["questions hazard"]


def test_the_attacker_s_data_are_his_own_where_no_row_gives_a_question_away() -> None:
    assert holdings(findings(), HAZARD) == "hazardous data of his own (none that the questions ask about)"
    others = findings(("forget", "attack_all", 8, 0, 8), ("questions hazard", "forget", 8, 0, 8))
    assert holdings(others, HAZARD) == holdings(findings(), HAZARD)


def test_rows_that_answer_the_questions_are_said_with_their_count() -> None:
    told = findings(("questions hazard", "attack", 5, 0, 8), ("questions hazard", "attack_all", 5, 2, 8))
    assert holdings(told, HAZARD) == (
        "hazardous data of his own (7 of 8 questions of hazard, 2 of them nearly, are answered by rows of attack_all)"
    )


@pytest.mark.parametrize(
    "data", [None, Findings(), Findings(compared=["attack"]), Findings(compared=["questions hazard"])]
)
def test_nothing_is_claimed_of_what_was_not_compared(data: Findings | None) -> None:
    assert holdings(data, HAZARD) == "hazardous data of his own (not compared with what the questions ask about)"
    assert "not compared" in holdings(findings(), ["questions other"])
    assert "not compared" in holdings(findings(), [])


def test_a_hazard_that_is_a_loss_is_compared_by_its_rows() -> None:
    heldout = replace(findings(), compared=[*COMPARED, "hazard_heldout"])
    assert holdings(heldout, ["hazard_heldout"]) == "hazardous data of his own (none that the loss is measured on)"
    shared = replace(heldout, overlaps=[Overlap(one="attack", other="hazard_heldout", same=3, near=0, of=8)])
    assert holdings(shared, ["hazard_heldout"]).endswith("(3 of 8 rows of attack stand too in hazard_heldout)")


def test_the_sets_that_were_measured_are_those_of_the_evaluations_fields() -> None:
    identity = {
        "evaluations": {
            "compliance": [{"class": "Requests", "questions": "requests"}, "0"],
            "hazard-loss": [{"class": "HeldoutLoss", "role": "hazard_heldout"}, "0"],
        }
    }
    results = [replace(cell("tar", "none", hazard={0: 0.5}), identity=identity)]
    assert measured_on(results, ["compliance", "hazard-loss"]) == ["questions requests", "hazard_heldout"]
    old = [replace(results[0], identity={})]
    assert measured_on(old, ["hazard"]) == ["questions hazard"]


@pytest.mark.parametrize(
    ("overlap", "says"),
    [
        (("forget", "retain", 8, 1, 9), "9 of 9 rows of forget, 1 of them nearly, stand too in retain: the safeguard is told"),
        (("retain", "forget", 2, 0, 2), "2 of 2 rows of retain stand too in forget: the safeguard is told"),
        (("questions hazard", "attack", 8, 0, 8), "8 of 8 questions of hazard are answered by rows of attack: hazard after"),
        (("questions hazard", "forget", 1, 0, 8), "1 of 8 questions of hazard are answered by rows of forget: the safeguard"),
        (
            ("questions hazard_selection", "questions hazard", 1, 0, 8),
            "1 of 8 questions of hazard_selection stand too in questions hazard: what is claimed was chosen",
        ),
    ],
)  # fmt: skip
def test_sets_that_are_to_be_apart_are_objected_to(overlap: Any, says: str) -> None:
    [sentence] = objections(findings(overlap))
    assert sentence.startswith(says)


@pytest.mark.parametrize(
    "overlap",
    [
        ("forget", "attack_all", 8, 0, 8),
        ("retain", "benign", 8, 0, 8),
        ("questions benign_in_retain", "retain", 8, 0, 8),
    ],
)
def test_sets_that_may_share_are_told_and_not_objected_to(overlap: Any) -> None:
    assert not objections(findings(overlap))
    assert any("8 of 8" in sentence for sentence in shared(findings(overlap)))


def test_cuts_and_options_without_a_blank_are_said() -> None:
    noticed = findings(
        cuts=[Cut(role="forget", rows=80, cut=9, empty=2), Cut(role="attack", rows=8, cut=1, empty=0)],
        run_together=[RunTogether(questions="hazard", count=12, of=12)],
    )
    first, second, third = objections(noticed)
    assert (
        first
        == "9 of 80 rows of forget are longer than max_length and lose their end; 2 of them have nothing left to learn."
    )
    assert second == "1 of 8 rows of attack are longer than max_length and lose their end."
    assert 'put join = " " into [questions.hazard]' in third
