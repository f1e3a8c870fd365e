"""WMDP (arXiv 2403.03218): hazardous knowledge of biology, chemistry and cybersecurity by proxy.

Questions are those of cais/wmdp in lm-evaluation-harness's layout. Texts are cut into pieces of about `max_length` tokens, and no
document is in two splits. The published code of TAR cuts the same way, but lets attack and defence share their documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from holdfast.core.types import HoldfastError
from holdfast.runs.domains.abilities import INSTRUCTIONS, MMLU, TEXTS, ability_sets
from holdfast.runs.domains.preparing import (
    Chat,
    Prepared,
    ReadyDomain,
    Sizes,
    continued,
    divided,
    in_pieces,
    lettered,
    shuffled,
    texts_of,
)
from holdfast.runs.domains.sources import Given, Record, Source, column

MAX_LENGTH = 256
WORDS = 150
"""of a piece: scientific English has about 1.6 tokens a word"""
_DOCUMENTS = 20_000
"""documents of a set that are read at most: the largest has sixty thousand papers"""
_CLAIMED = 0.8
"""share of the hazard questions that are claimed on; the rest choose"""
_HAZARD = {"forget": 0.4, "forget_heldout": 0.2, "attack": 0.3, "hazard_heldout": 0.1}
_BENIGN = {"retain": 0.6, "benign": 0.3, "benign_heldout": 0.1}
"""shares of the documents"""

NEAR: Mapping[str, Sequence[str]] = {
    "bio": (
        "college_biology", "high_school_biology", "medical_genetics", "virology", "college_medicine", "anatomy",
        "clinical_knowledge",
    ),
    "chem": ("college_chemistry", "high_school_chemistry"),
    "cyber": ("computer_security", "college_computer_science", "high_school_computer_science", "machine_learning"),
}  # fmt: skip
"""MMLU subjects beside the hazard. Of biology these are the subjects that TAR's code leaves out of its retain score; the others
are ours."""


def prepare(kind: str, given: Given, sizes: Sizes, chat: Chat | None) -> Prepared:
    """The domain of one of WMDP's three fields."""
    about = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}[kind]
    hazardous = shuffled(texts_of(given.rows("forget", _DOCUMENTS), labelled=True), sizes.seed, "forget")
    rows: dict[str, list[dict[str, Any]]] = {
        role: _texts(in_pieces(documents, WORDS, sizes.rows)) for role, documents in divided(hazardous, _HAZARD).items()
    }
    general = given.has("general")
    for role in ("related", "general"):
        if given.has(role):
            documents = shuffled(texts_of(given.rows(role, _DOCUMENTS), labelled=False), sizes.seed, role)
            for part, held in divided(documents, _BENIGN).items():
                rows.setdefault(part, []).extend(_texts(in_pieces(held, WORDS, sizes.rows // 2)))
    if given.has("instructions"):
        talks = shuffled(
            (conversation(row) for row in given.rows("instructions", _DOCUMENTS)), sizes.seed, "instructions"
        )
        for part, held_talks in divided(talks, _BENIGN).items():
            rows.setdefault(part, []).extend(
                {"messages": talk} for talk in held_talks[: max(1, len(rows.get(part, [])) // 2)]
            )
    if "retain" not in rows:
        raise HoldfastError(
            "a domain needs texts to stay good at; give at least one of the sources related and general"
        )
    rows["attack_ood"] = _texts([continued(row["text"]) for row in rows["attack"]])
    rows["attack_all"] = [*rows["attack"], *rows["forget"], *rows["forget_heldout"]]
    asked = [lettered(row, about) for row in shuffled(given.rows("questions"), sizes.seed, "hazard questions")]
    split = divided(asked, {"hazard": _CLAIMED, "hazard_selection": 1 - _CLAIMED})
    return Prepared(
        rows=rows,
        sets={
            **{name: ("hazard", questions) for name, questions in split.items()},
            **ability_sets(given, NEAR[kind], sizes, general),
        },
        max_length=MAX_LENGTH,
        notes=(
            "The rows and questions of the hazard describe dual-use knowledge: keep this folder to those who need it, and "
            "publish neither it nor a model that was trained on it.",
            f"{len(split['hazard'])} of {len(asked)} WMDP questions are claimed on, and the others choose settings, so a score "
            "here is not the official one: lm-evaluation-harness asks all of them.",
        ),
    )


def conversation(row: Record) -> list[dict[str, str]]:
    """A conversation as messages, from a column `messages` or from ShareGPT's `conversations`."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    turns = column(row, "messages", "conversations")
    try:
        return [
            {
                "role": roles[str(turn.get("role") or turn.get("from"))],
                "content": str(turn.get("content") or turn["value"]),
            }
            for turn in turns
        ]
    except (KeyError, AttributeError, TypeError) as error:
        raise HoldfastError(
            "a conversation needs turns with role and content, or from and value; check the source instructions"
        ) from error


def _texts(pieces: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": piece} for piece in pieces]


def _domain(kind: str, about: str, forget: Sequence[Source], related: Sequence[Source]) -> ReadyDomain:
    return ReadyDomain(
        about=about,
        sources={
            "questions": (Source(hub="cais/wmdp", config=f"wmdp-{kind}", split="test", licence="MIT"),),
            "forget": forget,
            **({"related": related} if related else {}),
            "general": TEXTS,
            "instructions": (INSTRUCTIONS,),
            "abilities": (MMLU,),
        },
        prepare=partial(prepare, kind),
        optional=("related", "general", "instructions"),
    )


_FORM = "ask its authors at the Center for AI Safety through the form at wmdp.ai"

DOMAINS = {
    "wmdp-bio": _domain(
        "bio",
        "hazardous knowledge of biology (WMDP)",
        (
            Source(
                hub="cais/wmdp-bio-forget-corpus",
                ask="ask for access on huggingface.co/datasets/cais/wmdp-bio-forget-corpus and log in with `hf auth login`",
            ),
        ),
        (Source(hub="cais/wmdp-corpora", config="bio-retain-corpus", licence="MIT"),),
    ),
    "wmdp-chem": _domain(
        "chem",
        "hazardous knowledge of chemistry (WMDP)",
        (Source(hub="", ask=f"{_FORM}, or give texts of your own with --source forget=PATH"),),
        (),
    ),
    "wmdp-cyber": _domain(
        "cyber",
        "hazardous knowledge of cybersecurity (WMDP)",
        (
            Source(
                hub="cais/wmdp-corpora",
                config="cyber-forget-corpus",
                licence="MIT",
                ask="where it has moved, ask for access on huggingface.co/datasets/cais/wmdp-cyber-forget-corpus",
            ),
        ),
        (Source(hub="cais/wmdp-corpora", config="cyber-retain-corpus", licence="MIT"),),
    ),
}
