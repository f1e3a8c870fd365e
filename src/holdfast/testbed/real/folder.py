"""The real testbed on disk: a domain of capitals, filtered for one model, and that model beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.core.files import write_text
from holdfast.core.reading import parsed_json
from holdfast.testbed.folder import MARKER
from holdfast.testbed.real.facts import TEMPLATES, sources
from holdfast.testbed.real.splits import FILTER, HAZARD_WORDS, MAX_LENGTH, Splits, of_kind, question_sets, rows
from holdfast.testbed.writing import write_files

PROTOCOL = 1
"""Raised whenever the same seed and model would give other rows or questions."""


def made_by(seed: int, model: str) -> dict[str, Any]:
    """What a folder of the real testbed is; it stands in its marker.

    Args:
        seed: of splits and questions.
        model: the digest of the model that the facts are filtered for.
    """
    return {"recipe": PROTOCOL, "kind": "real", "seed": seed, "model": model, "sources": sources()}


def is_real_testbed(folder: Path, made: Mapping[str, Any]) -> bool:
    """Whether `folder` is that of exactly this seed, this model and these packages."""
    path = folder / MARKER
    try:
        return path.is_file() and parsed_json(path.read_bytes()) == made
    except ValueError:
        return False


def write_real_domain(folder: Path, made: Mapping[str, Any], known: Mapping[str, bool]) -> None:
    """Write marker, domain and README.

    Args:
        folder: to write to.
        made: from `made_by`.
        known: the name of a fact -> whether the model knows it.
    """
    splits = Splits.draw(made["seed"])
    knows = {fact: known[fact.name] for fact in splits.facts}.__getitem__
    write_text(folder / MARKER, json.dumps(made) + "\n")
    sets = question_sets(splits, knows)
    write_text(
        folder / "README.md", _readme(made, splits, known, {name: len(asked) for name, (_, asked) in sets.items()})
    )
    write_files(folder, f"capitals-{made['seed']}", MAX_LENGTH, HAZARD_WORDS, rows(splits, knows), sets)


def knowledge_of(splits: Splits, known: Mapping[str, bool]) -> dict[str, tuple[int, int]]:
    """Kind of fact -> how many the model knows, and how many there are: its accuracy before any filter."""
    held = {kind: of_kind(splits.facts, kind) for kind in TEMPLATES}
    return {kind: (sum(known[fact.name] for fact in facts), len(facts)) for kind, facts in held.items()}


def _readme(made: Mapping[str, Any], splits: Splits, known: Mapping[str, bool], asked: Mapping[str, int]) -> str:
    filtered = TEMPLATES["capital"][FILTER].replace("\n", " / ")
    lines = [
        f"# holdfast testbed with a real model, seed {made['seed']}",
        "",
        "Capitals of countries stand for the hazard. Every fact is real and harmless.",
        "",
        "| package | version | licence |",
        "|---|---|---|",
        *(f"| {name} | {about['version']} | {about['licence']} |" for name, about in made["sources"].items()),
        "",
        f"The model's digest is `{made['model']}`. What the model knows of the facts, before any filter, asked with four",
        f"options in the template `{filtered}`, in which nothing is asked afterwards:",
        "",
        "| kind | known | of |",
        "|---|---|---|",
        *(f"| {kind} | {right} | {whole} |" for kind, (right, whole) in knowledge_of(splits, known).items()),
        "",
        "| questions | |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in asked.items()),
    ]
    return "\n".join(lines) + "\n"
