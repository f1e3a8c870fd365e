"""What the check of a domain says: lengths, what is twice, what is missing for what, and what would stop a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.cli.app import app, main
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError
from holdfast.runs.domains.check import Checked, check_domain
from tests.conftest import SmallTestbed
from tests.runs.domains import sets


def a_domain(folder: Path, rows: dict[str, list[dict[str, Any]]], questions: dict[str, list[dict[str, Any]]]) -> Path:
    """A domain of these rows and questions."""
    toml = ["schema = 1"]
    for role, held in rows.items():
        sets.write_lines(folder / f"{role}.jsonl", held)
        toml.append(f'[data.{role}]\nfile = "{role}.jsonl"')
    for name, asked in questions.items():
        sets.write_lines(folder / f"q-{name}.jsonl", asked)
        toml.append(f'[questions.{name}]\nfile = "q-{name}.jsonl"')
    (folder / "domain.toml").write_text("\n".join(toml) + "\n")
    return folder


def question(number: int, answer: int = 0) -> dict[str, Any]:
    return {"prompt": f"Creature {number} lives in", "choices": [" a mill", " a pond", " a wood"], "answer": answer}


def lacking(checked: Checked, kind: str) -> dict[str, tuple[str, ...]]:
    """Preset -> what it lacks."""
    return {name: missing.needs for missing in checked.missing if missing.kind == kind for name in missing.names}


def test_a_whole_domain_lacks_requests_alone_and_nothing_stops_it(tiny_testbed: SmallTestbed) -> None:
    checked = check_domain(tiny_testbed.domain.folder)
    assert checked.stops == ()
    assert {role.role for role in checked.roles} == set(tiny_testbed.domain.sources)
    assert lacking(checked, "attacks") == {}
    assert set(lacking(checked, "evaluations").values()) == {
        ("questions requests",),
        ("questions requests_selection",),
        ("questions benign_requests",),
        ("questions benign_requests", "questions requests"),
    }
    pairs = lacking(checked, "safeguards")
    assert set(pairs.values()) == {("pairs in forget", "pairs in forget_heldout")}
    assert {"refusal-sft", "refusal-dpo", "tar-refusal"} <= pairs.keys()
    assert "tar" not in pairs


def test_a_domain_of_requests_lacks_none_of_what_refusals_need(tiny_refusal_testbed: SmallTestbed) -> None:
    checked = check_domain(tiny_refusal_testbed.domain.folder)
    assert lacking(checked, "safeguards") == {}
    assert "compliance" not in lacking(checked, "evaluations")
    assert lacking(checked, "evaluations")["hazard"] == ("questions hazard",)


def test_a_model_counts_tokens(tiny_testbed: SmallTestbed) -> None:
    folder = tiny_testbed.domain.folder
    words, tokens = check_domain(folder), check_domain(folder, tiny_testbed.model.path)
    assert words.roles[0].lengths.unit == "words"
    assert words.roles[0].cut is None
    assert tokens.roles[0].lengths.unit == "tokens"
    # A word is a token here, and the start and the end token stand around each row.
    assert tokens.roles[0].lengths.total == words.roles[0].lengths.total + 2 * words.roles[0].rows
    assert tokens.roles[0].cut == tokens.roles[0].empty == 0


def test_what_is_twice_is_counted(tmp_path: Path) -> None:
    stories = [{"text": sets.story(number)} for number in range(6)]
    folder = a_domain(
        tmp_path,
        {"forget": [*stories[:4], stories[0]], "attack": stories[2:6], "retain": [{"text": "tea and toast"}]},
        {"hazard": [question(1), question(2), question(1), question(3, 1)]},
    )
    checked = check_domain(folder)
    assert [role.repeated for role in checked.roles] == [1, 0, 0]
    [hazard] = checked.sets
    assert (hazard.repeated, hazard.commonest, hazard.options) == (1, 0.75, (3, 3))
    [overlap] = checked.findings.overlaps
    assert {overlap.one, overlap.other, overlap.same} == {"attack", "forget", 2}


def test_what_is_missing_is_named_with_what_cannot_run(tmp_path: Path) -> None:
    folder = a_domain(
        tmp_path,
        {"forget": [{"text": sets.story(1)}], "attack": [{"text": sets.story(2)}]},
        {"hazard": [question(1)]},
    )
    checked = check_domain(folder)
    safeguards, attacks = lacking(checked, "safeguards"), lacking(checked, "attacks")
    assert {"forget_heldout", "retain"} <= set(safeguards["tar"])
    assert set(safeguards) == set(collect("holdfast.safeguards"))
    assert "full-adamw-1e-3" not in attacks
    assert ("benign",) in attacks.values()
    assert lacking(checked, "evaluations")["benign-learning"] == ("benign_new", "questions benign_new")
    assert lacking(checked, "evaluations")["degeneracy"] == ("questions of an ability",)
    assert checked.stops == ()


@pytest.mark.parametrize(
    ("rows", "questions", "says"),
    [
        ({"forget": [{"text": ""}]}, {"hazard": [question(1)]}, "must be a text that is not empty"),
        ({"forget": [{"body": "x"}]}, {"hazard": [question(1)]}, "a row needs"),
        ({}, {"hazard": [{"prompt": "a", "choices": [" b"], "answer": 0}]}, "at least two"),
        ({"retain": [{"text": "tea"}]}, {"tea": [question(1)]}, "nothing can be audited"),
    ],
)
def test_what_would_stop_a_run_stops_the_check(
    rows: dict[str, Any], questions: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_domain(tmp_path, rows, questions)
    assert main(["domain", "check", str(folder)]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert "Next:" not in printed.out


def test_rows_and_questions_that_a_model_cannot_read_are_stops(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    long = " ".join(["the"] * 40)
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    pair = {"prompt": long, "chosen": " the", "rejected": " is"}
    folder = a_domain(
        tmp_path,
        {"forget": [pair], "retain": [chat]},
        {"hazard": [{"prompt": "the of", "choices": [" the", " is"], "answer": 0}]},
    )
    toml = folder / "domain.toml"
    toml.write_text(toml.read_text().replace("schema = 1", "schema = 1\nmax_length = 16"))
    assert check_domain(folder).stops == ()
    stops = check_domain(folder, tiny_testbed.model.path).stops
    assert any("nothing left to learn" in stop for stop in stops)
    assert any("no chat template" in stop for stop in stops)


def test_json_is_one_document_with_everything(tiny_testbed: SmallTestbed, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["domain", "check", str(tiny_testbed.domain.folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "domain-checked"
    assert document["stops"] == []
    assert {role["role"] for role in document["roles"]} == set(tiny_testbed.domain.sources)
    assert document["findings"]["compared"]


def test_a_folder_that_is_no_domain_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"no domain\.toml"):
        check_domain(tmp_path)


def test_the_check_is_readable(tiny_testbed: SmallTestbed) -> None:
    result = CliRunner().invoke(app, ["domain", "check", str(tiny_testbed.domain.folder)])
    assert result.exit_code == 0, result.output
    pairs = sum(safeguard.needs_pairs for safeguard in collect("holdfast.safeguards").values())
    for words in (
        "held by",
        "defender",
        "commonest",
        "No two sets that are to be apart",
        f"missing for {pairs} of",
        "Next: holdfast evaluate",
    ):
        assert words in result.output
