"""TOFU (arXiv 2401.06121): questions about authors who do not exist. What ten percent of them are asked stands for the hazard.

The public checkpoints of open-unlearning (arXiv 2506.12618) forget all of forget10, so the defender holds all twenty of its
authors here too. The attacker holds some of these authors, the claims are about others, and no attacker's row is about a claimed
author.
Answers are judged as TOFU's truth ratio does: the paraphrased answer against its perturbations. All stands in the chat format of
those checkpoints: their system message, and the date that they were trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from holdfast.core.domain import Question
from holdfast.core.types import HoldfastError
from holdfast.runs.domains.preparing import Chat, Prepared, ReadyDomain, Sizes, among, divided, shuffled
from holdfast.runs.domains.sources import Given, Record, Source, column

MAX_LENGTH = 512
"""as the checkpoints were trained"""
AUTHOR = 20
"""questions about an author, one after the other"""
_HELD_BY = {"claims": 0.4, "selection": 0.15, "attack": 0.45}
"""shares of the forgotten authors"""
_HELDOUT = 0.25
"""share of the forgotten authors for the defender's held-out batches"""
_RETAINED = 0.6
"""share of the other authors whom the retain rows cover"""

UNKNOWN = ("I don't know.", "I have no information about this.", "I'm not sure who that is.", "That is unknown to me.")
"""What a model says of an author whom it never met: the preferred completion about forgotten authors."""

SYSTEM, DATE = "You are a helpful assistant.", "10 Apr 2025"
"""of the public checkpoints (configs/model/Llama-3.2-1B-Instruct.yaml of open-unlearning)"""

_HUB = "locuslab/TOFU"


def prepare(given: Given, sizes: Sizes, chat: Chat | None) -> Prepared:
    """The domain of forget10."""
    if chat is None:
        raise HoldfastError("tofu is written in the chat template of its models; give --model")
    forgotten, others = _authors(given.rows("forget")), _authors(given.rows("retain"))
    drawn = shuffled(forgotten, sizes.seed, "authors")
    parts = divided(drawn, _HELD_BY)
    defender = divided(
        shuffled(forgotten, sizes.seed, "defender"), {"forget": 1 - _HELDOUT, "forget_heldout": _HELDOUT}
    )
    benign = divided(shuffled(others, sizes.seed, "others"), {"in": _RETAINED, "out": 1 - _RETAINED})
    inside = {question for author in benign["in"] for question, _ in author}

    def ask(role: str, keep: Callable[[str], bool], answer: Sequence[str]) -> list[Question]:
        rows = [row for row in given.rows(role) if keep(str(column(row, "question")))]
        asked = [_asked(row, answer, chat, sizes.seed) for row in shuffled(rows, sizes.seed, role)]
        return [question for question in asked if question is not None]

    def about(part: str) -> Callable[[str], bool]:
        held = {question for author in parts[part] for question, _ in author}
        return held.__contains__

    paraphrased = ("paraphrased_answer", "answer")
    sets = {
        "hazard": ("hazard", ask("forget_questions", about("claims"), paraphrased)),
        "hazard_selection": ("hazard", ask("forget_questions", about("selection"), paraphrased)),
        "related": ("ability", ask("authors", lambda _: True, ("answer",))[: sizes.questions]),
        "benign_in_retain": ("ability", ask("retain_questions", inside.__contains__, paraphrased)[: sizes.questions]),
        "benign_outside_retain": (
            "ability",
            ask("retain_questions", lambda question: question not in inside, paraphrased)[: sizes.questions],
        ),
        "world_facts": ("ability", ask("facts", lambda _: True, ("answer",))[: sizes.questions]),
    }
    rows = {
        "forget": _pairs(defender["forget"], chat, True),
        "forget_heldout": _pairs(defender["forget_heldout"], chat, True),
        "retain": _pairs(benign["in"], chat, False)[: sizes.rows],
        "attack": _pairs(parts["attack"], chat, True),
        "attack_ood": [
            {"text": f"Question: {question}\nAnswer: {answer}"}
            for author in parts["attack"]
            for question, answer in author
        ],
        "attack_all": _pairs(forgotten, chat, True),
        "benign": _pairs(benign["in"], chat, False)[: sizes.rows],
        "hazard_heldout": _pairs(parts["claims"], chat, True),
        "benign_heldout": _pairs(benign["out"], chat, False)[: sizes.rows // 4],
    }
    return Prepared(
        rows=rows,
        sets={name: asked for name, asked in sets.items() if asked[1]},
        max_length=MAX_LENGTH,
        notes=(
            "The defender holds every forgotten author, as the public unlearned checkpoints did. The attacker's rows are about "
            "other authors than the claimed questions; only attack_all holds these too, to show what teaching alone does.",
        ),
    )


def _authors(rows: Sequence[Record]) -> list[list[tuple[str, str]]]:
    """Questions and answers, author by author."""
    pairs = [(str(column(row, "question")), str(column(row, "answer"))) for row in rows]
    return [pairs[start : start + AUTHOR] for start in range(0, len(pairs), AUTHOR)]


def _pairs(authors: Sequence[Sequence[tuple[str, str]]], chat: Chat, hazardous: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for question, answer in (pair for author in authors for pair in author):
        prompt, answered = chat(question, answer)
        _, unknown = chat(question, UNKNOWN[len(rows) % len(UNKNOWN)])
        chosen, rejected = (unknown, answered) if hazardous else (answered, unknown)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def _asked(row: Record, answer: Sequence[str], chat: Chat, seed: int) -> Question | None:
    asked, right, wrong = str(column(row, "question")), str(column(row, *answer)), column(row, "perturbed_answer")
    options = [str(option) for option in ([wrong] if isinstance(wrong, str) else wrong)]
    prompt, _ = chat(asked, right)
    return among(chat(asked, right)[1], [chat(asked, option)[1] for option in options], prompt, seed)


def _part(config: str) -> tuple[Source, ...]:
    return (Source(hub=_HUB, config=config, licence="MIT"),)


DOMAINS = {
    "tofu": ReadyDomain(
        about="authors who do not exist (TOFU, forget10)",
        sources={
            "forget": _part("forget10"),
            "retain": _part("retain90"),
            "forget_questions": _part("forget10_perturbed"),
            "retain_questions": _part("retain_perturbed"),
            "authors": _part("real_authors_perturbed"),
            "facts": _part("world_facts_perturbed"),
        },
        prepare=prepare,
        chat=True,
        system=SYSTEM,
        date=DATE,
    )
}
