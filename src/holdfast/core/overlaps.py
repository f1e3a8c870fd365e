"""Which rows and questions of a domain are the same, or nearly: what a report may claim of them comes from here.

Texts are compared as words, without case and punctuation. Two texts of the same words are the same. Two texts of at least
`LONG` words are nearly the same where they share most of their runs of five words (Jaccard index, arXiv 2107.06499 for the use on
training data; candidates by the smallest hashes, Broder 1997). A row gives a question away where it says the prompt and then the
right answer, and nearly so where it holds most of the prompt's runs of three words, and the answer. Constants are ours.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from zlib import crc32

from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, MEASURER_ROLES, Domain, Question, Row
from holdfast.core.findings import Overlap, questions_of
from holdfast.core.types import HoldfastError

LONG = 20
"""words from which on two texts may be nearly the same: in a short text one other word is another fact"""
ALIKE = 0.7
"""share of the runs of five words that two nearly equal texts have in common"""
ASKED = 0.8
"""share of a prompt's runs of three words that a row holds which nearly gives the question away"""
_SMALLEST = 24
"""hashes that are kept of a text to find what is like it"""
_EVERYWHERE = 64
"""texts that may share a hash; one that more of them share is a phrase of the format"""

_MARKERS = re.compile(
    r"(</?\|?\w{1,40}\|?>|\[/?[a-z]{1,10}\])\s*(system|user|assistant|model)?\s|</?\|?\w{1,40}\|?>|^\W*question:|answer:\W*$"
)
"""what chat templates and question sets write around turns and questions"""

Words = tuple[str, ...]


def readable(domain: Domain, needed: Sequence[str]) -> list[str]:
    """The roles whose rows can be compared: the needed ones, and all others that are files and well formed.

    Raises:
        HoldfastError: the rows of a needed role are missing or malformed.
    """
    roles = []
    for role in (*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES):
        if role in needed:
            domain.rows(role)
            roles.append(role)
        elif "file" in domain.sources.get(role, {}):
            try:
                domain.rows(role)
            except HoldfastError:  # nobody asked for these rows, so nothing is claimed of them
                continue
            roles.append(role)
    return roles


def overlaps(domain: Domain, roles: Sequence[str]) -> list[Overlap]:
    """Every two of a domain's roles and question sets that have something in common.

    Raises:
        HoldfastError: the rows of a role or the questions are malformed.
    """
    rows = {role: _Rows([_words(_text(row)) for row in domain.rows(role)]) for role in roles}
    asked = {name: domain.questions(name).questions for name in domain.question_sources}
    found = [_rows_in_rows(one, other, rows) for one, other in _pairs(list(rows))]
    found += [_asked_in_rows(name, role, asked[name], rows[role]) for name in asked for role in rows]
    found += [_asked_twice(one, other, asked) for one, other in _pairs(list(asked))]
    return [overlap for overlap in found if overlap.same or overlap.near]


class _Rows:
    """The rows of a role, indexed by what they say."""

    def __init__(self, texts: Sequence[Words]) -> None:
        self.texts = texts
        self.whole = Counter(texts)
        self.by_hash: defaultdict[int, list[int]] = defaultdict(list)
        self.hashes = [_smallest(text) for text in texts]
        for place, hashes in enumerate(self.hashes):
            for code in hashes:
                self.by_hash[code].append(place)

    def has_nearly(self, text: Words, hashes: Sequence[int]) -> bool:
        shared = Counter(
            place
            for code in hashes
            if len(self.by_hash.get(code, ())) <= _EVERYWHERE
            for place in self.by_hash.get(code, ())
        )
        return any(_alike(text, self.texts[place]) for place, _ in shared.most_common(3))


def _rows_in_rows(left: str, right: str, rows: Mapping[str, _Rows]) -> Overlap:
    """How much of the smaller of two roles stands in the larger."""
    one, other = sorted((left, right), key=lambda role: len(rows[role].texts))
    texts, there = rows[one], rows[other]
    same = [text in there.whole for text in texts.texts]
    near = sum(
        there.has_nearly(text, hashes)
        for text, hashes, known in zip(texts.texts, texts.hashes, same, strict=True)
        if not known
    )
    return Overlap(one=one, other=other, same=sum(same), near=near, of=len(same))


def _asked_in_rows(name: str, role: str, questions: Sequence[Question], rows: _Rows) -> Overlap:
    """How many questions are answered by a row of a role."""
    prompts = [_words(question.prompt) for question in questions]
    answers = [_words(question.choices[question.answer]) for question in questions]
    holding: defaultdict[Words, list[int]] = defaultdict(list)
    wanted = [set(_runs(prompt, min(3, len(prompt)))) for prompt in prompts]
    for place, runs in enumerate(wanted):
        for run in runs:
            holding[run].append(place)
    sizes = {len(run) for run in holding}
    same, near = set[int](), set[int]()
    for text in rows.texts:
        hits = Counter(place for size in sizes for run in set(_runs(text, size)) for place in holding.get(run, ()))
        for place, count in hits.items():
            if place in same or count < ASKED * len(wanted[place]) or not _holds(text, answers[place]):
                continue
            (same if _holds(text, prompts[place] + answers[place]) else near).add(place)
    return Overlap(one=questions_of(name), other=role, same=len(same), near=len(near - same), of=len(questions))


def _asked_twice(left: str, right: str, asked: Mapping[str, Sequence[Question]]) -> Overlap:
    """How many questions of the smaller of two sets the other asks too, with the same right answer."""
    one, other = sorted((left, right), key=lambda name: len(asked[name]))
    keys = {
        name: [(_words(question.prompt), _words(question.choices[question.answer])) for question in asked[name]]
        for name in (one, other)
    }
    there = set(keys[other])
    same = sum(key in there for key in keys[one])
    return Overlap(one=questions_of(one), other=questions_of(other), same=same, near=0, of=len(keys[one]))


def _text(row: Row) -> str:
    turns = [turn["content"] for turn in row["messages"]] if "messages" in row else row.values()
    return "\n".join(map(str, turns))


def _words(text: str) -> Words:
    return tuple(re.findall(r"\w+", _MARKERS.sub(" ", text.casefold() + " ")))


def _runs(words: Words, size: int) -> Iterator[Words]:
    return (words[place : place + size] for place in range(len(words) - size + 1)) if size else iter(())


def _holds(text: Words, words: Words) -> bool:
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(text)} "


def _smallest(text: Words) -> list[int]:
    return sorted({crc32(" ".join(run).encode()) for run in _runs(text, 5)})[:_SMALLEST] if len(text) >= LONG else []


def _alike(left: Words, right: Words) -> bool:
    one, other = set(_runs(left, 5)), set(_runs(right, 5))
    return len(one & other) >= ALIKE * len(one | other)


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
