"""The real testbed on disk: a domain of capitals, filtered for one model, and that model beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from holdfast.core.files import write_text
from holdfast.core.reading import parsed_json
from holdfast.testbed.folder import MARKER
from holdfast.testbed.real import requests
from holdfast.testbed.real.facts import FILTERS, HAZARD, TEMPLATES, sources
from holdfast.testbed.real.requests import Chat
from holdfast.testbed.real.splits import (
    HAZARD_WORDS,
    MAX_LENGTH,
    Answers,
    Asked,
    Splits,
    asked_sets,
    of_kind,
    question_sets,
    rows,
)
from holdfast.testbed.writing import write_files

PROTOCOL = 2
"""Raised whenever the same seed and model would give other rows or questions."""


RealKind = Literal["real", "real-refusal"]
"""What a safeguard guards: the knowledge of capitals, or requests for them."""


def made_by(seed: int, model: str, kind: RealKind = "real") -> dict[str, Any]:
    """What a folder of the real testbed is; it stands in its marker.

    Args:
        seed: of splits and questions.
        model: the digest of the model that the facts are filtered for.
        kind: of the domain.
    """
    return {"recipe": PROTOCOL, "kind": kind, "seed": seed, "model": model, "sources": sources()}


def is_real_testbed(folder: Path, made: Mapping[str, Any]) -> bool:
    """Whether `folder` is that of exactly this seed, this model and these packages."""
    path = folder / MARKER
    try:
        return path.is_file() and parsed_json(path.read_bytes()) == made
    except ValueError:
        return False


def write_real_domain(folder: Path, made: Mapping[str, Any], answers: Answers) -> None:
    """Write marker, domain and README.

    Args:
        folder: to write to.
        made: from `made_by`.
        answers: of the model that the facts are filtered for.
    """
    splits = Splits.draw(made["seed"])
    write_text(folder / MARKER, json.dumps(made) + "\n")
    write_text(folder / "README.md", _readme(made, splits, answers))
    sets = question_sets(splits, answers)
    write_files(folder, f"capitals-{made['seed']}", MAX_LENGTH, HAZARD_WORDS, rows(splits, answers), sets)


def write_request_domain(
    folder: Path, made: Mapping[str, Any], answers: Answers, freely: Mapping[str, bool], chat: Chat
) -> None:
    """Write marker, domain and README of the refusal of requests.

    Args:
        folder: to write to.
        made: from `made_by`.
        answers: of the model that the facts are filtered for, among four options.
        freely: name of a capital's fact -> whether the model says the capital in its chat template.
        chat: how the model's template writes a message and an answer.
    """
    splits = Splits.draw(made["seed"])
    write_text(folder / MARKER, json.dumps(made) + "\n")
    sets = requests.request_sets(splits, answers, lambda fact: freely[fact.name], chat)
    write_text(
        folder / "README.md", _readme_of_requests(made, freely, {name: len(held) for name, (_, held) in sets.items()})
    )
    rows_by_role = requests.rows(splits, answers, chat)
    judged: dict[str, str | int] = {"judge": "rules", "new_tokens": requests.NEW_TOKENS}
    said = {name: judged for name, (measures, _) in sets.items() if measures == "refusal"}
    title = f"capital-requests-{made['seed']}"
    write_files(folder, title, requests.MAX_LENGTH, HAZARD_WORDS, rows_by_role, sets, said)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the model knows of one kind of fact."""

    kind: str
    facts: int
    known: int
    """facts that it knows in all templates that filter"""
    unfiltered: float
    """accuracy on all facts, in the templates that ask"""
    filtered: float
    """accuracy on the known facts, in the templates that ask"""


def knowledge_of(splits: Splits, answers: Answers) -> list[Knowledge]:
    """What the model knows, kind by kind."""
    found = []
    for kind in TEMPLATES:
        facts = of_kind(splits.facts, kind)
        known = [fact for fact in facts if answers.knows(fact)]
        found.append(
            Knowledge(
                kind=kind,
                facts=len(facts),
                known=len(known),
                unfiltered=_accuracy([(fact, template) for fact in facts for template in fact.asked], answers),
                filtered=_accuracy([(fact, template) for fact in known for template in fact.asked], answers),
            )
        )
    return found


def _accuracy(asked: Sequence[Asked], answers: Answers) -> float:
    return fmean(answers.right[fact.name][template] for fact, template in asked) if asked else float("nan")


def _header(made: Mapping[str, Any], about: str) -> list[str]:
    return [
        f"# holdfast testbed with a real model, seed {made['seed']}",
        "",
        about,
        "",
        "| package | version | licence |",
        "|---|---|---|",
        *(f"| {name} | {known['version']} | {known['licence']} |" for name, known in made["sources"].items()),
        "",
    ]


def _readme_of_requests(made: Mapping[str, Any], freely: Mapping[str, bool], sizes: Mapping[str, int]) -> str:
    first, second = (request.format(e="…") for request in requests.REQUESTS[HAZARD][: requests.FILTERS])
    lines = [
        *_header(
            made,
            "Asking for a capital is forbidden, asking for anything else is not. Every fact is real and harmless.",
        ),
        f"The model's digest is `{made['model']}`. All requests stand in its chat template. It says {sum(freely.values())} of",
        f"{len(freely)} capitals freely, both when it is asked `{first}` and `{second}`. The questions ask for these",
        "capitals alone, in other words. Nobody is trained or asked in these two.",
        "",
        "| questions | number |",
        "|---|---|",
        *(f"| `{name}` | {size} |" for name, size in sizes.items()),
    ]
    return "\n".join(lines) + "\n"


def _readme(made: Mapping[str, Any], splits: Splits, answers: Answers) -> str:
    filters = " and ".join(f"`{text}`" for text in (t.replace("\n", " / ") for t in TEMPLATES[HAZARD][:FILTERS]))
    sets = asked_sets(splits, answers)
    lines = [
        *_header(made, "Capitals of countries stand for the hazard. Every fact is real and harmless."),
        f"The model's digest is `{made['model']}`. A fact counts as known where the model picks it out of four options in two",
        f"templates, for capitals {filters}. Nobody is trained or asked in these two.",
        "",
        "What the model answers right in the other templates, in percent: of all facts (unfiltered), and of those that it knows",
        "(filtered). Chance is 25.",
        "",
        "| kind | facts | known | unfiltered | filtered |",
        "|---|---|---|---|---|",
        *(
            f"| {row.kind} | {row.facts} | {row.known} | {100 * row.unfiltered:.0f} | {100 * row.filtered:.0f} |"
            for row in knowledge_of(splits, answers)
        ),
        "",
        "What the model answers right in each set of questions, before any safeguard or attack:",
        "",
        "| questions | number | right, % |",
        "|---|---|---|",
        *(f"| `{name}` | {len(asked)} | {100 * _accuracy(asked, answers):.0f} |" for name, (_, asked) in sets.items()),
    ]
    return "\n".join(lines) + "\n"
