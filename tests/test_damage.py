"""Damaged files, and fields of another type, one at a time: read all the same, or refused in one sentence; nothing is lost."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.app import main
from holdfast.core.presets import describe, pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.search.trial import Trial
from holdfast.runs.standing import Standing
from tests.core.test_records import FULL, spoilt
from tests.report.synthetic import cell, plan, write
from tests.test_bad_input import Place, everything_under, place, safeguard  # noqa: F401  a fixture

ROLES = {"undefended": "undefended", "tar": "defended"}


def answered(where: Place, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command, which does its work or refuses in one sentence; the sentence. No file that was there is lost."""
    before = everything_under(where.folder)
    capsys.readouterr()
    status = main(arguments)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    after = everything_under(where.folder)
    assert {path: after.get(path) for path in before} == before
    if status == 0:
        return ""
    [sentence] = printed.err.splitlines()
    assert sentence.startswith("holdfast: ")
    assert len(sentence) < 1200, sentence
    return sentence


def audit_in(folder: Path) -> Path:
    """A small campaign."""
    curves = {"hazard": {0: 0.3, 5: 0.5}, "ability": {0: 0.9, 5: 0.8}}
    results = [
        cell(model, attack, costs=[(5, 10, 1e9)], gradient_norms=[(1, 0.5)], losses=[(1, 0.5)], **curves)  # type: ignore[arg-type]
        for model in ROLES
        for attack in ("none", "full-adamw-1e-3")
    ]
    whole = plan(results, ROLES)
    details = {**whole.details, **FULL, "models": {**whole.details["models"], **FULL["models"]}}
    return write(folder, plan(results, ROLES, details=details), results)


DEEP = b"[" * 100_000 + b"]" * 100_000
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "half of it": lambda whole: whole[: len(whole) // 2],
    "nested too deep": lambda whole: DEEP,
    "a number of 5,000 digits": lambda whole: re.sub(rb"(?<=[:=] )[0-9]+|(?<=[:=] )\"[^\"]*\"", b"1" * 5000, whole, count=1),
    "empty": lambda whole: b"",
    "zeros": lambda whole: b"\0" * len(whole),
    "zeros at the end": lambda whole: whole + b"\0" * 512,
    "no UTF-8": lambda whole: b"\xff\xfe" + whole,
    "UTF-16": lambda whole: whole.decode("latin-1").encode("utf-16"),
    "a list": lambda whole: b"[]",
    "null": lambda whole: b"null",
    "a number that is none": lambda whole: re.sub(rb"(?<=[:=] )[0-9]+", b"NaN", whole, count=1),
    "text": lambda whole: b"the dog ate it",
    "another first byte": lambda whole: bytes([whole[0] ^ 1]) + whole[1:],
}  # fmt: skip
BY_DEFAULT = ("half of it", "nested too deep", "a number of 5,000 digits")

FILES: dict[str, tuple[str, Callable[[Place], list[str]]]] = {
    "a plan": ("audit/campaign.json", lambda p: ["report", str(p.folder / "audit"), "--out", str(p.folder / "r.html")]),
    "a record": ("audit/cells/*", lambda p: ["report", str(p.folder / "audit"), "--out", str(p.folder / "r.html")]),
    "a run's note": ("run/run.json", lambda p: ["demo", "--status", str(p.folder / "run")]),
    "a suite": (
        "suite/suite.json",
        lambda p: ["audit", "--plan", "--suite", str(p.folder / "suite"), *safeguard(p)[2:-2], "--undefended", str(p.model)],
    ),
    "a card": ("model/holdfast.json", lambda p: safeguard(p)),
    "a config": ("model/config.json", lambda p: safeguard(p)),
    "a tokenizer": ("model/tokenizer.json", lambda p: safeguard(p)),
    "a tokenizer's config": ("model/tokenizer_config.json", lambda p: safeguard(p)),
    "weights": ("model/model.safetensors", lambda p: safeguard(p)),
    "a domain": ("domain/domain.toml", lambda p: safeguard(p)),
    "rows": ("domain/data/forget.jsonl", lambda p: safeguard(p)),
    "questions": ("domain/questions/hazard.jsonl", lambda p: ["evaluate", *safeguard(p)[2:6]]),
    "a README": (
        "README.md", lambda p: ["card", str(p.folder / "audit"), "--out", str(p.folder / "README.md")]
    ),
}  # fmt: skip


def laid_out(where: Place) -> None:
    """Every kind of file beside the model and the domain."""
    audit_in(where.folder / "audit")
    Standing(what="demo", settings={"seed": 0}, command="holdfast demo").write(where.folder / "run")
    (where.folder / "suite").mkdir()
    attacks = {"found": describe(pick("holdfast.attacks", "full-adamw-1e-3"))}
    (where.folder / "suite" / "suite.json").write_text(json.dumps({"schema": 1, "attacks": attacks}))
    (where.folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n\nkeep\n")


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        pytest.param(
            kind, damage, id=f"{kind}, {damage}", marks=[
                pytest.mark.situation("damaged file", kind),
                *([] if damage in BY_DEFAULT and kind != "a README" else [pytest.mark.slow]),
            ],
        )
        for kind in FILES
        for damage in DAMAGE
        if not (kind == "weights" and damage in ("UTF-16", "a number that is none"))  # which are bytes
    ],
)  # fmt: skip
def test_a_damaged_file_is_read_or_refused(
    kind: str,
    damage: str,
    place: Place,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    laid_out(place)
    pattern, command = FILES[kind]
    path = sorted(place.folder.glob(pattern))[0]
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    if kind == "a README" and damage != "half of it":  # which the command may add its section to
        path.write_bytes(b"---\n" + DAMAGE[damage](b"license: 3\n") + b"\n---\nkeep\n")
        before = path.read_bytes()
        if main(command(place)) == 0:
            assert b"keep" in path.read_bytes()
        else:
            assert path.read_bytes() == before
            [sentence] = capsys.readouterr().err.splitlines()
            assert "README.md is no model card" in sentence
        return
    if kind == "a README":
        assert main(command(place)) in (0, 2)
        return
    sentence = answered(place, capsys, command(place))
    if sentence and path.is_file():
        named = {"rows": "forget", "questions": "hazard", "weights": "model"}.get(kind, path.name)
        assert named in sentence or str(path.parent) in sentence, sentence


def test_deep_and_long_input_is_quoted_in_a_line_at_most(
    place: Place,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = safeguard(place)
    long = "9" * 5000
    odd = {
        "--milestones": ["attack", "full-adamw-1e-3", *words[2:-2], "--milestones", long],
        "--set": [*words, "--set", f"random-mapping.outer_steps={long}"],
        "a setting that is nested": [*words, "--set", "random-mapping.outer_steps=" + "-" * 20_000 + "1"],
        "a table that is no JSON": [*words, "--set", "random-mapping.outer_steps={(1, 2): 3}"],
        "no setting": [*words, "--set", long],
        "no field": [*words, "--set", f"random-mapping.{long}=1"],
        "no preset": ["attack", long, *words[2:-2]],
        "no suite": ["audit", "--suite", long, *words[2:-2], "--undefended", str(place.model)],
        "no study": ["study", long],
        "nothing to list": ["list", long],
        "no precision": [*words, "--precision", long],
        "no device": [*words, "--device", long],
        "no family": ["search", "--families", long, *words[2:-2], "--undefended", str(place.model)],
        "no such file": words,
    }
    for what, arguments in odd.items():
        if what == "no such file":
            place.toml('file = "data/forget.jsonl"', f'file = "{long}"')
        sentence = answered(place, capsys, arguments)
        assert sentence, what
        assert "9" * 400 not in sentence, what


def variants(content: Any, share: float) -> Iterator[tuple[str, Any]]:
    """Some of the tables with one field of another type, the same in every run."""
    draw = random.Random(7)
    return (pair for pair in spoilt(content) if draw.random() < share)


SHARES = [0.008, pytest.param(0.2, marks=pytest.mark.slow)]
"""of all variants that are tried, by default and where time does not matter"""


@pytest.mark.situation("damaged file", "a field of another type, through a command")
@pytest.mark.parametrize("share", SHARES)
def test_a_record_or_a_plan_with_a_field_of_another_type_through_every_verb(
    share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    made = Place(tmp_path)
    audit, tried = str(audit_in(tmp_path / "audit")), 0
    verbs = (
        ["audit", "--status", audit],
        ["records", audit, "--out", str(tmp_path / "x.parquet")],
        ["card", audit, "--out", str(tmp_path / "card.md")],
        ["report", audit, "--out", str(tmp_path / "r.html")],
        ["compare", audit, audit, "--out", str(tmp_path / "c.html")],
    )
    cell_file = sorted((tmp_path / "audit" / "cells").iterdir())[-1]
    for file, number in ((tmp_path / "audit" / "campaign.json", None), (cell_file, 0), (cell_file, 1)):
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        for _, changed in variants(json.loads(text if number is None else lines[number]), share):
            rest = [*lines]
            if number is not None:
                rest[number] = json.dumps(changed)
            file.write_text(json.dumps(changed) if number is None else "\n".join(rest))
            for verb in verbs:
                for name in ("x.parquet", "card.md", "r.html", "r.md", "r.json", "c.html", "c.md", "c.json"):
                    (tmp_path / name).unlink(missing_ok=True)
                answered(made, capsys, verb)
            tried += 1
        file.write_text(text, encoding="utf-8")
    record_property("situations", tried)
    assert tried > 3


READERS = [0.2, pytest.param(1.0, marks=pytest.mark.slow)]
"""The same where no command runs."""


@pytest.mark.situation("damaged file", "a field of another type")
@pytest.mark.parametrize("share", READERS)
def test_a_run_s_note_and_a_trial_with_a_field_of_another_type(
    share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """A note is refused by its name; a trial is run anew."""
    made, tried = Place(tmp_path), 0
    note = Standing(
        what="demo", settings={"seed": 0}, command="holdfast demo", seconds=1.0, running=["a"], failed=["b"]
    )
    for field, changed in variants(asdict(note), share):
        (tmp_path / "run.json").write_text(json.dumps(changed))
        tried += 1
        sentence = answered(made, capsys, ["demo", "--status", str(tmp_path)])
        assert not sentence or ("run.json is damaged" in sentence and field.split(".")[0] in sentence)
    trial = Trial(
        key="k", family="full", settings={"a": 1}, attack=describe(pick("holdfast.attacks", "full-adamw-1e-3")),
        curve=[(0, 0.5, 0.5)], halfway=[0.5],
    )  # fmt: skip
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(asdict(trial)))
    assert Trial.read(path) == trial
    for _, changed in variants(asdict(trial), share):
        path.write_text(json.dumps(changed))
        tried += 1
        read = Trial.read(path)
        assert read is None or isinstance(read.rank[1], int | float)
    record_property("situations", tried)


@pytest.mark.situation("damaged file", "a field of another type")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_with_a_field_of_another_type_is_loaded_or_refused(
    name: str,
    share: float,
    place: Place,  # noqa: F811
    record_property: Callable[[str, object], None],
) -> None:
    path, tried = place.model / name, 0
    content = json.loads(path.read_text(encoding="utf-8"))
    # Sizes of models that no machine holds are another matter.
    for _, changed in variants(content, share * 5):
        if any(value == 10**30 for value in changed.values()):
            continue
        path.write_text(json.dumps(changed))
        tried += 1
        checkpoint = Checkpoint(str(place.model))
        try:
            checkpoint.check(max_length=16)
            checkpoint.load_both()
            _ = checkpoint.digest, checkpoint.tokenizer_digest
        except HoldfastError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 700, str(error)  # noqa: PT017
    record_property("situations", tried)
    shutil.rmtree(place.model)
