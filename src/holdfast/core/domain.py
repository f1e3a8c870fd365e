"""A domain: the data sets and questions of one hazard, named by role in `domain.toml`. Read and checked without torch.

schema = 1
name = "my-domain"
max_length = 256                      # tokens a row is cut to
hazard_words = ["compound"]              # words that mark hazardous text: generated rows with such a word are dropped

[data.forget]                         # defender: forget, forget_heldout, retain, distill
file = "data/forget.jsonl"            # attacker: attack, attack_ood, attack_all, benign

[data.retain]
dataset = "owner/name"                # a Hugging Face data set instead of a file
split = "train"
text = "body"                         # the column that holds the text

[questions.hazard]
file = "questions/hazard.jsonl"
measures = "hazard"                   # or "ability"
join = " "                            # what stands between prompt and option, where the file has nothing there

[questions.requests]
file = "questions/requests.jsonl"     # choices: what complies, and a refusal; the answer 0
measures = "refusal"
judge = "rules"                       # answers of any wording; without this line they begin with the first choice
new_tokens = 128                      # of an answer that are judged
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from holdfast.core.files import digest, file_digest
from holdfast.core.reading import LINE, excerpt, line, parsed_json, parsed_toml
from holdfast.core.types import HoldfastError

SCHEMA = 1

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

DEFENDER_ROLES = ("forget", "forget_heldout", "retain", "distill")
"""`distill` is text to distil the original model on; the text need not be true."""
ATTACKER_VIEW = {"hazard": "attack", "hazard_ood": "attack_ood", "hazard_all": "attack_all", "benign": "benign"}
"""The name an attack asks for -> the role that holds its rows."""
ATTACKER_ROLES = tuple(ATTACKER_VIEW.values())
MEASURER_ROLES = ("hazard_heldout", "benign_heldout", "benign_new")
"""Only evaluations read these roles: neither a safeguard nor an attack ever gets them."""

Row = Mapping[str, Any]
"""`{"text"}`, `{"messages"}` or `{"prompt", "chosen", "rejected"}`."""


@dataclass(frozen=True)
class Question:
    """A question, scored by log P(choice | prompt); prompt and choice are joined as they stand here."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    key: str = ""
    """of a request: what an answer that complies says, for the judge by rules; empty: no right answer is known"""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one name in `domain.toml`."""

    name: str
    measures: Literal["hazard", "ability", "trainability", "refusal"]
    questions: tuple[Question, ...]
    judge: Literal["exact", "rules"] = "exact"
    """of requests: whether a written answer has to begin with the compliant completion, or is judged by rules"""
    new_tokens: int | None = None
    """of requests: tokens of an answer that are judged; None: as many as the longest completion has, and a few more"""

    @cached_property
    def digest(self) -> str:
        asked: list[Any] = [[q.prompt, q.choices, q.answer, *([q.key] if q.key else [])] for q in self.questions]
        # What a set did not always say stands here only where it is said, so that what was recorded before stays known.
        judged = [self.judge, self.new_tokens] if (self.judge, self.new_tokens) != ("exact", None) else []
        return digest([*asked, *judged])

    @cached_property
    def glued(self) -> int:
        """Questions in which a word of the prompt and one of an option become one, in scripts with blanks between words."""
        return sum(
            any(_is_glued(question.prompt, choice) for choice in question.choices) for question in self.questions
        )


@dataclass(frozen=True)
class Domain:
    """A folder with `domain.toml`. Rows and questions are read when they are asked for, and checked then."""

    folder: Path
    name: str
    max_length: int
    sources: Mapping[str, Mapping[str, Any]]
    question_sources: Mapping[str, Mapping[str, Any]]
    hazard_words: tuple[str, ...] = ()
    """words that mark hazardous text"""

    @classmethod
    def open(cls, folder: Path | str) -> Domain:
        """Read `folder/domain.toml`.

        Raises:
            HoldfastError: the file is missing, is not TOML, has another schema, or names an unknown role or key.
        """
        folder = Path(folder)
        path = folder / "domain.toml"
        if not path.is_file():
            raise HoldfastError(
                f"{folder} is not a domain: it has no domain.toml; see docs/getting-started.md for its layout"
            )
        try:
            table = parsed_toml(path.read_bytes())
        except ValueError as error:
            raise HoldfastError(f"{path} is not valid TOML: {error}") from error
        if table.get("schema") != SCHEMA or table["schema"] is True:
            raise HoldfastError(
                f"{path} has schema {excerpt(table.get('schema'))}; this holdfast reads schema = {SCHEMA}"
            )
        title, max_length = table.get("name", folder.name), table.get("max_length", 256)
        if not isinstance(title, str):
            raise HoldfastError(f'{path}: name must be a text, such as "my-domain"')
        if not isinstance(max_length, int) or max_length < 2:
            raise HoldfastError(f"{path}: max_length must be a whole number of tokens, at least 2")
        words = table.get("hazard_words", [])
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise HoldfastError(f'{path}: hazard_words must be a list of words, such as ["compound"]')
        sources, questions = table.get("data", {}), table.get("questions", {})
        _check_keys(f"{path}", table, ("schema", "name", "max_length", "hazard_words", "data", "questions"))
        _check_keys(f"{path} [data]", sources, (*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES))
        for role, source in sources.items():
            _check_source(f"{path} [data.{role}]", source, ("text", "messages", "prompt", "chosen", "rejected"))
        _check_keys(f"{path} [questions]", questions, questions)
        for name, source in questions.items():
            where = f"{path} [questions.{name}]"
            _check_source(
                where, source, ("prompt", "choices", "answer", "measures", "join", "key", "judge", "new_tokens")
            )
            if source.get("measures", "ability") not in ("hazard", "ability", "trainability", "refusal"):
                raise HoldfastError(f'{where}: measures must be "hazard", "ability", "trainability" or "refusal"')
            if source.get("judge", "exact") not in ("exact", "rules"):
                raise HoldfastError(f'{where}: judge must be "exact" or "rules"')
        return cls(folder, title, max_length, sources, questions, tuple(words))

    def has(self, role: str) -> bool:
        return role in self.sources

    def rows(self, role: str) -> tuple[Row, ...]:
        """The rows of a role, each with exactly the columns of one of the three kinds.

        Raises:
            HoldfastError: the role is not named, its file is missing, empty or malformed, or a row lacks a column.
        """
        if role not in self.sources:
            raise HoldfastError(
                f"{self.folder / 'domain.toml'} names no data set for the role {role!r}, which this needs; "
                f"add a [data.{role}] section with a file or a dataset"
            )
        return _rows(self.folder, role, *self._frozen(self.sources[role]))

    def questions(self, name: str) -> QuestionSet:
        """One set of questions.

        Raises:
            HoldfastError: the set is not named, its file is missing, empty or malformed, or an answer is out of range.
        """
        if name not in self.question_sources:
            raise HoldfastError(
                f"{self.folder / 'domain.toml'} names no questions {name!r}; it has: {_listed(self.question_sources)}"
            )
        return _question_set(self.folder, name, *self._frozen(self.question_sources[name]))

    def digest(self, *roles: str) -> dict[str, str]:
        """Content hash of the rows of each role."""
        for role in roles:
            self.rows(role)
        return {role: _rows_digest(self.folder, role, *self._frozen(self.sources[role])) for role in roles}

    def _frozen(self, source: Mapping[str, Any]) -> tuple[Columns, str]:
        """A source as a cache key, with its file's digest: rows stay cached for as long as the file stays the same."""
        path = self.folder / source.get("file", "")
        return tuple(sorted(source.items())), file_digest(path) if path.is_file() else ""


Columns = tuple[tuple[str, Any], ...]


@cache
def _rows(folder: Path, role: str, frozen: Columns, content: str) -> tuple[Row, ...]:
    source = dict(frozen)
    names = ("text", "messages", "prompt", "chosen", "rejected")
    columns: dict[str, str] = {name: source[name] for name in names if name in source}
    rows = tuple(_row(where, raw, columns) for where, raw in _records(folder, f"data.{role}", source))
    if not rows:
        raise HoldfastError(f"the data set for the role {role!r} in {folder} is empty; give it at least one row")
    return rows


@cache
def _rows_digest(folder: Path, role: str, frozen: Columns, content: str) -> str:
    return digest([dict(row) for row in _rows(folder, role, frozen, content)])


@cache
def _question_set(folder: Path, name: str, frozen: Columns, content: str) -> QuestionSet:
    source = dict(frozen)
    questions = tuple(_question(where, raw, source) for where, raw in _records(folder, f"questions.{name}", source))
    if not questions:
        raise HoldfastError(f"the questions {name!r} in {folder} are empty; give at least one")
    default = "hazard" if name.startswith("hazard") else "ability"
    return QuestionSet(
        name, source.get("measures", default), questions, source.get("judge", "exact"), source.get("new_tokens")
    )


def _records(folder: Path, section: str, source: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where it stands, the raw record)."""
    if "dataset" in source:
        yield from _hub_records(section, source)
        return
    path = folder / source["file"]
    if not path.is_file():
        raise HoldfastError(f"{path}, named in [{section}] of domain.toml, does not exist")
    try:
        # Not splitlines: JSON may hold characters such as U+2028 as they stand.
        rows = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise HoldfastError(f"{path} is not UTF-8 text: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        where = f"{path}, line {number}"
        try:
            raw = parsed_json(row)
        except ValueError as error:
            raise HoldfastError(f"{where}: not valid JSON ({error}); every line must be one JSON object") from error
        if not isinstance(raw, dict):
            raise HoldfastError(f'{where}: expected a JSON object such as {{"text": …}}, found {type(raw).__name__}')
        if "\\ud" in row.lower() and _LONE_SURROGATE.search(json.dumps(raw, ensure_ascii=False)):
            raise HoldfastError(f"{where}: a text holds half of a surrogate pair, which is no character; mend the text")
        yield where, raw


def _hub_records(section: str, source: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise HoldfastError(
            f"[{section}] of domain.toml names a Hugging Face data set; install it with: pip install 'holdfast[datasets]'"
        ) from error
    name, split = source["dataset"], source.get("split", "train")
    try:
        loaded = datasets.load_dataset(name, source.get("config"), split=split)
    except Exception as error:  # whatever the hub client raises, the user needs one sentence
        reason = line(str(error)) or type(error).__name__
        raise HoldfastError(
            f"the data set {excerpt(name)} (split {excerpt(split)}) of [{section}] cannot be loaded: {reason}"
        ) from error
    for number, raw in enumerate(loaded):
        yield f"data set {name}, row {number}", dict(raw)


def _row(where: str, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """Pick the columns of the row's kind, renamed to ours.

    `columns` maps our name to the source's; where `columns` is empty, the row itself shows its kind.
    """
    kinds = (("text",), ("messages",), ("prompt", "chosen", "rejected"))
    wanted = next((kind for kind in kinds if (kind[0] in columns if columns else kind[0] in raw)), None)
    if wanted is None:
        raise HoldfastError(
            f'{where}: a row needs "text", "messages" or "prompt", "chosen" and "rejected"; it has: {_listed(raw)}'
        )
    row = {}
    for name in wanted:
        column = columns.get(name, name)
        if column not in raw:
            raise HoldfastError(f"{where}: the row has no column {excerpt(column)}; it has: {_listed(raw)}")
        row[name] = raw[column]
    for name, value in row.items():
        _check_value(where, name, value)
    return row


def _check_value(where: str, name: str, value: Any) -> None:
    if name != "messages":
        if not isinstance(value, str) or not value.strip():
            raise HoldfastError(f"{where}: {name!r} must be a text that is not empty")
        return
    well_formed = isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    if not well_formed:
        raise HoldfastError(f'{where}: "messages" must be a list of {{"role": …, "content": …}}')
    if not any(turn["role"] == "assistant" for turn in value):
        raise HoldfastError(
            f"{where}: no turn in 'messages' has the role 'assistant', so there is nothing to learn from"
        )


def _question(where: str, raw: Mapping[str, Any], source: Mapping[str, Any]) -> Question:
    values = []
    for name in ("prompt", "choices", "answer"):
        column = source.get(name, name)
        if column not in raw:
            raise HoldfastError(f"{where}: the question has no {excerpt(column)}; it has: {_listed(raw)}")
        values.append(raw[column])
    prompt, choices, answer = values
    if not isinstance(prompt, str) or not prompt:
        raise HoldfastError(f"{where}: 'prompt' must be a text that is not empty")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise HoldfastError(f"{where}: 'choices' must be a list of at least two texts, none of them empty")
    if len(set(choices)) < len(choices):
        raise HoldfastError(f"{where}: two of the choices are the same, so the question has no single answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise HoldfastError(
            f"{where}: 'answer' is {excerpt(answer)}; it must be the index of a choice, 0 to {len(choices) - 1}"
        )
    # Blanks go with the option, as a word's blank goes with the word; all else belongs to the prompt.
    join = source.get("join", "")
    before = join.rstrip()
    key = raw.get(source.get("key", "key"), "") if source.get("judge") == "rules" else ""
    if not isinstance(key, str):
        raise HoldfastError(f"{where}: 'key' must be a text: what an answer that complies says")
    return Question(prompt + before, tuple(join[len(before) :] + choice for choice in choices), answer, key)


def _is_glued(prompt: str, choice: str) -> bool:
    last, first = prompt[-1], choice[0]
    return (_is_of_a_spaced_word(last) or last in _AFTER_A_WORD) and _is_of_a_spaced_word(first)


_AFTER_A_WORD = ".,:;?!)\"'\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}%"


def _is_of_a_spaced_word(character: str) -> bool:
    """Latin, Greek, Cyrillic, Arabic, Devanagari and the like: Thai is the first script that puts no blanks between words."""
    return character.isalnum() and character < "\u0e00"


_LONGEST = 4096
"""tokens of an answer"""


def _check_source(where: str, source: Any, columns: tuple[str, ...]) -> None:
    if not isinstance(source, dict):
        raise HoldfastError(f"{where} must be a section with a file or a dataset")
    _check_keys(where, source, ("file", "dataset", "config", "split", *columns))
    if ("file" in source) == ("dataset" in source):
        raise HoldfastError(f"{where} must have either a file or a dataset")
    tokens = source.get("new_tokens", 1)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 1 <= tokens <= _LONGEST:
        raise HoldfastError(f"{where}: new_tokens must be a whole number of tokens, 1 to {_LONGEST}")
    if not all(isinstance(value, str) for key, value in source.items() if key != "new_tokens"):
        raise HoldfastError(f"{where}: every value must be a text")


def _check_keys(where: str, table: Any, allowed: Iterable[str]) -> None:
    if not isinstance(table, dict):
        raise HoldfastError(f"{where} must be a section")
    for key in table:
        if key not in allowed:
            raise HoldfastError(f"{where}: {excerpt(key)} is not known here; {nearest(key, allowed)}")


_NAMES = 30
"""known names that a sentence lists"""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known ones, or those that there are."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    more = f" and {len(known) - _NAMES} more" if len(known) > _NAMES else ""
    return f"known: {', '.join(known[:_NAMES]) or 'nothing'}{more}"


def _listed(names: Iterable[str]) -> str:
    return line(", ".join(map(str, names)), 2 * LINE) or "nothing"


OUTSIDE_RETAIN = "benign_outside_retain"
