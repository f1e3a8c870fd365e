"""What ready domains share: texts in pieces, splits in which no document is twice, and questions in the usual layout."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from holdfast.core.domain import Question
from holdfast.core.reading import excerpt
from holdfast.core.types import HoldfastError
from holdfast.runs.domains.sources import Given, Record, Source, column

Item = TypeVar("Item")

Chat = Callable[[str, str], tuple[str, str]]
"""A user's message and an answer -> the prompt and the answer as a chat template writes them, with the end of the turn."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a ready domain is."""

    seed: int = 0
    """of splits, of what is taken of a large set, and of the order of options"""
    rows: int = 4000
    """rows of a role at most"""
    questions: int = 500
    """questions of an ability set at most; hazard sets are whole"""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The content of a domain folder."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    sets: Mapping[str, tuple[str, Sequence[Question]]]
    """name -> what it measures and its questions"""
    max_length: int
    said: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    """name of a set -> what else its section says"""
    notes: Sequence[str] = ()
    """sentences for the folder's README"""


@dataclass(frozen=True, kw_only=True)
class ReadyDomain:
    """A public hazard proxy, and how its sets become a domain."""

    about: str
    sources: Mapping[str, Sequence[Source]]
    """role -> the public sets whose rows are taken together"""
    prepare: Callable[[Given, Sizes, Chat | None], Prepared]
    optional: tuple[str, ...] = ()
    """roles of sources that a domain is whole without"""
    chat: bool = False
    """whether requests are written in a model's chat template"""
    system: str = ""
    """the system message of that chat"""
    date: str = ""
    """the day that a template with a date writes; empty: the day of all templates here"""


PIECES = 8
"""pieces of one document at most, so that no long document fills a role"""
_SHORTEST = 20
"""words of a piece at least"""


def shuffled(items: Iterable[Item], seed: int, purpose: str) -> list[Item]:
    """The items in an order drawn from the seed."""
    ordered = list(items)
    random.Random(f"holdfast domain {purpose} {seed}").shuffle(ordered)
    return ordered


def distinct(items: Iterable[Item], text: Callable[[Item], str]) -> list[Item]:
    """The items whose words no earlier item has."""
    kept: dict[str, Item] = {}
    for item in items:
        kept.setdefault(" ".join(re.findall(r"\w+", text(item).casefold())), item)
    return list(kept.values())


def divided(items: Sequence[Item], shares: Mapping[str, float]) -> dict[str, list[Item]]:
    """The items by role, in their order.

    Raises:
        HoldfastError: there are too few for every role to have one.
    """
    if len(items) < len(shares):
        raise HoldfastError(
            f"there are {len(items)} documents for {', '.join(shares)}; give a larger source, at least {len(shares)} documents"
        )
    parts, start, taken = {}, 0.0, 0
    for place, (role, share) in enumerate(shares.items()):
        start += share
        left = len(shares) - place - 1
        end = len(items) - left if left == 0 else min(max(round(start * len(items)), taken + 1), len(items) - left)
        parts[role], taken = list(items[taken:end]), end
    return parts


def texts_of(rows: Iterable[Record], labelled: bool | None = None) -> list[str]:
    """The documents of a set, each once.

    Args:
        rows: with a column text, txt_chunk or text_chunk.
        labelled: where rows have a label, which of them count.
    """
    chosen = (row for row in rows if labelled is None or "label" not in row or bool(row["label"]) == labelled)
    texts = (str(column(row, "text", "txt_chunk", "text_chunk", "content")) for row in chosen)
    return distinct((text for text in texts if text.strip()), lambda text: text)


def in_pieces(documents: Iterable[str], words: int, most: int) -> list[str]:
    """At most so many pieces of about so many words, from the beginning of each document, no piece twice."""
    pieces: list[str] = []
    for document in documents:
        spans = [found.span() for found in re.finditer(r"\S+", document)]
        for start in range(0, min(len(spans), PIECES * words), words):
            part = spans[start : start + words]
            if len(part) >= min(_SHORTEST, len(spans)):
                pieces.append(document[part[0][0] : part[-1][1]])
        if len(pieces) >= most:
            break
    return distinct(pieces[:most], lambda piece: piece)


def continued(piece: str) -> str:
    """A piece in a form that no defender sees: its first half as a task, its second half as the answer."""
    words = piece.split()
    half = len(words) // 2
    return f"Complete the passage.\n\nPassage: {' '.join(words[:half])}\n\nCompletion: {' '.join(words[half:])}"


LETTERS = "ABCDEFGH"


def lettered(row: Record, subject: str) -> Question:
    """A question in the layout of MMLU and WMDP (lm-evaluation-harness): options by letter, the letter is the answer.

    Raises:
        HoldfastError: the row has no question, no list of options, or an answer that is none of them.
    """
    asked, options = str(column(row, "question")).strip(), column(row, "choices")
    if not isinstance(options, (list, tuple)) or not 2 <= len(options) <= len(LETTERS):
        raise HoldfastError(
            f"the question {excerpt(asked)} needs a list of 2 to {len(LETTERS)} choices; check --source"
        )
    answer = column(row, "answer")
    place = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS else answer
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(options):
        raise HoldfastError(
            f"the question {excerpt(asked)} has the answer {excerpt(answer)}, which is none of its choices"
        )
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    prompt = f"The following are multiple choice questions (with answers) about {subject}.\n\n{asked}{listed}\nAnswer:"
    return Question(prompt, tuple(f" {letter}" for letter in LETTERS[: len(options)]), place)


def among(right: str, wrong: Sequence[str], prompt: str, seed: int) -> Question | None:
    """A question whose options are whole answers, in an order drawn from the seed; None where no wrong option is left."""
    options = list(dict.fromkeys([right, *wrong]))
    random.Random(f"holdfast domain options {seed} {prompt}").shuffle(options)
    return Question(prompt, tuple(options), options.index(right)) if len(options) > 1 else None


def by_subject(
    rows: Sequence[Record], subjects: Iterable[str] | None, but: Iterable[str], sizes: Sizes
) -> list[Question]:
    """MMLU questions of these subjects, or of all but those, evenly over the subjects and at most `sizes.questions`."""
    wanted, left_out = None if subjects is None else set(subjects), set(but)
    held: dict[str, list[Record]] = {}
    for row in shuffled(rows, sizes.seed, "questions"):
        subject = str(column(row, "subject"))
        if subject not in left_out and (wanted is None or subject in wanted):
            held.setdefault(subject, []).append(row)
    taken: list[Question] = []
    for turn in range(max(map(len, held.values()), default=0)):
        for subject in sorted(held):
            if turn < len(held[subject]) and len(taken) < sizes.questions:
                taken.append(lettered(held[subject][turn], subject.replace("_", " ")))
    return taken
