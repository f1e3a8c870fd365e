"""The files of a domain: rows by role, questions by name, and the `domain.toml` that names them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.core.domain import Question
from holdfast.core.files import write_text


def write_files(
    folder: Path,
    name: str,
    max_length: int,
    hazard_words: Sequence[str],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    sets: Mapping[str, tuple[str, Sequence[Question]]],
    said: Mapping[str, Mapping[str, str | int]] | None = None,
) -> None:
    """Write a domain; `domain.toml` comes last, so a folder that has it is complete.

    Args:
        folder: to write to.
        name: of the domain.
        max_length: tokens a row is cut to.
        hazard_words: words that mark hazardous text.
        rows: role -> its rows.
        sets: name of a set -> what it measures and its questions.
        said: name of a set -> what else its section says, such as how answers are judged.
    """
    for role, examples in rows.items():
        _write_lines(folder / "data" / f"{role}.jsonl", examples)
    for title, (_, questions) in sets.items():
        _write_lines(folder / "questions" / f"{title}.jsonl", map(_question_row, questions))
    toml = ["schema = 1", f'name = "{name}"', f"max_length = {max_length}"]
    toml.append(f"hazard_words = {json.dumps(hazard_words)}")
    for role in rows:
        toml += ["", f"[data.{role}]", f'file = "data/{role}.jsonl"']
    for title, (measures, _) in sets.items():
        toml += ["", f"[questions.{title}]", f'file = "questions/{title}.jsonl"', f'measures = "{measures}"']
        toml += [f"{key} = {json.dumps(value)}" for key, value in (said or {}).get(title, {}).items()]
    write_text(folder / "domain.toml", "\n".join(toml) + "\n")


def _question_row(question: Question) -> dict[str, Any]:
    row = {"prompt": question.prompt, "choices": list(question.choices), "answer": question.answer}
    return {**row, "key": question.key} if question.key else row


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
