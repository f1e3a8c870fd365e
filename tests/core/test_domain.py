"""A domain's rows and questions: read, renamed, checked and hashed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, MEASURER_ROLES, Domain, Question
from holdfast.core.types import HoldfastError
from tests.core.test_records import spoilt

ROLES = (*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES)


def make(folder: Path, toml: str, **files: str | Sequence[Mapping[str, Any]]) -> Domain:
    """A domain whose files are `<name>.jsonl`, each a text or rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_bytes(text.encode())
    (folder / "domain.toml").write_text(f"schema = 1\n{toml}", encoding="utf-8")
    return Domain.open(folder)


def of_rows(folder: Path, rows: str | Sequence[Mapping[str, Any]], columns: str = "") -> Domain:
    return make(folder, f'[data.retain]\nfile = "rows.jsonl"\n{columns}', rows=rows)


def of_questions(
    folder: Path, rows: str | Sequence[Mapping[str, Any]], columns: str = "", name: str = "some"
) -> Domain:
    return make(folder, f'[questions.{name}]\nfile = "rows.jsonl"\n{columns}', rows=rows)


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TEXT = {"text": "some words"}
CHAT = {"messages": TURNS}
PREFERENCE = {"prompt": "ask ", "chosen": "no", "rejected": "yes"}
ASKED = {"prompt": "one and one is", "choices": [" two", " three"], "answer": 0}


@pytest.mark.parametrize("row", [TEXT, CHAT, PREFERENCE], ids=["text", "messages", "preference"])
def test_a_row_of_each_kind_is_read_with_exactly_its_columns(row: dict[str, Any], tmp_path: Path) -> None:
    assert of_rows(tmp_path, [{"id": 7, **row, "label": None}]).rows("retain") == (row,)


def test_kinds_may_be_mixed_where_no_column_is_renamed(tmp_path: Path) -> None:
    assert of_rows(tmp_path, [TEXT, PREFERENCE, CHAT]).rows("retain") == (TEXT, PREFERENCE, CHAT)


@pytest.mark.parametrize(
    ("row", "columns", "read"),
    [
        ({"body": "some words", "text": "not this"}, 'text = "body"', TEXT),
        ({"turns": TURNS, "text": "not this"}, 'messages = "turns"', CHAT),
        ({"q": "ask ", "chosen": "no", "bad": "yes"}, 'prompt = "q"\nrejected = "bad"', PREFERENCE),
    ],
    ids=["text", "messages", "preference"],
)
def test_columns_are_renamed_and_the_renaming_decides_the_kind(
    row: dict[str, Any], columns: str, read: dict[str, Any], tmp_path: Path
) -> None:
    renamed = of_rows(tmp_path / "renamed", [row], columns)
    assert renamed.rows("retain") == (read,)
    assert renamed.digest("retain") == of_rows(tmp_path / "plain", [read]).digest("retain")


def test_columns_of_questions_are_renamed(tmp_path: Path) -> None:
    row = {"question": ASKED["prompt"], "options": ASKED["choices"], "label": 1}
    renaming = 'prompt = "question"\nchoices = "options"\nanswer = "label"'
    assert of_questions(tmp_path, [row], renaming).questions("some").questions == (
        Question("one and one is", (" two", " three"), 1),
    )


@pytest.mark.parametrize(
    ("name", "toml", "measures"),
    [
        ("hazard", "", "hazard"),
        ("hazard_other", "", "hazard"),
        ("history", "", "ability"),
        ("history", 'measures = "hazard"', "hazard"),
        ("hazard", 'measures = "ability"', "ability"),
        ("new", 'measures = "trainability"', "trainability"),
    ],
)
def test_what_questions_measure_is_said_or_told_from_their_name(
    name: str, toml: str, measures: str, tmp_path: Path
) -> None:
    assert of_questions(tmp_path, [ASKED], toml, name).questions(name).measures == measures


# What a text may hold: every character there is, but no half of one.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": texts})
rows_of_text = st.fixed_dictionaries({"text": texts})
rows_of_turns = st.fixed_dictionaries(
    {"messages": st.lists(turns).map(lambda held: [*held, {"role": "assistant", "content": "x"}])}
)
rows_of_preference = st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts})
all_rows = st.lists(st.one_of(rows_of_text, rows_of_turns, rows_of_preference), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows=all_rows, escaped=st.booleans(), ending=st.sampled_from(["\n", "\r\n", "\n\n \n"]), trailing=st.booleans())
def test_every_row_is_read_as_it_was_written(
    rows: list[dict[str, Any]], escaped: bool, ending: str, trailing: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        domain = of_rows(Path(folder), ending.join(lines) + ending * trailing)
        assert list(domain.rows("retain")) == rows


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_line(separator: str, tmp_path: Path) -> None:
    text = f"before{separator}after"
    domain = of_rows(tmp_path, json.dumps({"text": text}, ensure_ascii=separator < "\x80") + "\n")
    assert domain.rows("retain") == ({"text": text},)


def test_blank_lines_are_skipped_and_still_counted_in_messages(tmp_path: Path) -> None:
    lines = f'\n{json.dumps(TEXT)}\n  \n\t\n{{"txt": "x"}}\n'
    with pytest.raises(HoldfastError, match=r"rows\.jsonl, line 5: .*it has: txt"):
        of_rows(tmp_path, lines).rows("retain")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_a_row_is_refused(content: str, tmp_path: Path) -> None:
    rows, questions = of_rows(tmp_path / "a", content), of_questions(tmp_path / "b", content)
    with pytest.raises(HoldfastError, match=r"the role 'retain' in .* is empty"):
        rows.rows("retain")
    with pytest.raises(HoldfastError, match=r"the questions 'some' in .* are empty"):
        questions.questions("some")


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_read(tmp_path: Path) -> None:
    assert of_rows(tmp_path / "whole", '{"text": "\\ud83d\\ude00"}').rows("retain") == ({"text": "😀"},)
    for half in ("\\ud83d", "\\uDE00", "\\ude00\\ud83d"):
        with pytest.raises(HoldfastError, match="line 1: a text holds half of a surrogate pair"):
            of_rows(tmp_path / half[2:], f'{{"text": "a{half}b"}}').rows("retain")


BASE = [TEXT, {"text": "other words"}]


@pytest.mark.parametrize(
    "rows",
    [
        [TEXT, {"text": "other words "}],
        [TEXT],
        [*BASE, TEXT],
        BASE[::-1],
        [TEXT, {"messages": [{"role": "assistant", "content": "other words"}]}],
    ],
    ids=["a character", "a row less", "a row more", "the order", "the kind"],
)
def test_the_digest_of_rows_changes_with_their_content(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    digests = [of_rows(tmp_path / name, held).digest("retain") for name, held in (("a", BASE), ("b", rows))]
    assert digests[0] != digests[1]


def test_the_digest_of_rows_depends_on_nothing_else(tmp_path: Path) -> None:
    plain = of_rows(tmp_path / "here", BASE)
    written_otherwise = "\n\n".join(json.dumps({"id": 1, **row}, indent=None, separators=(" , ", ":")) for row in BASE)
    other = make(
        tmp_path / "there" / "deep",
        'name = "another"\nmax_length = 9\n[data.retain]\nfile = "b.jsonl"\n[data.forget]\nfile = "b.jsonl"\n',
        b=written_otherwise,
    )
    assert plain.digest("retain") == other.digest("retain")
    assert set(other.digest("retain", "forget").values()) == set(plain.digest("retain").values())


def test_a_domain_moved_elsewhere_keeps_its_digests(tmp_path: Path) -> None:
    toml = '[data.retain]\nfile = "rows.jsonl"\n[questions.some]\nfile = "asked.jsonl"\n'
    here = make(tmp_path / "here", toml, rows=BASE, asked=[ASKED])
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = Domain.open(tmp_path / "there")
    assert here.digest("retain") == there.digest("retain")
    assert here.questions("some").digest == there.questions("some").digest


def test_rows_and_questions_that_changed_on_disk_are_read_again(tmp_path: Path) -> None:
    toml = '[data.retain]\nfile = "rows.jsonl"\n[questions.some]\nfile = "asked.jsonl"\n'
    domain = make(tmp_path, toml, rows=BASE, asked=[ASKED])
    before = domain.digest("retain"), domain.questions("some").digest
    assert domain.rows("retain") is domain.rows("retain")
    make(tmp_path, toml, rows=BASE[::-1], asked=[{**ASKED, "answer": 1}])
    assert domain.rows("retain") == tuple(BASE[::-1])
    assert domain.digest("retain") != before[0]
    assert domain.questions("some").digest != before[1]


@pytest.mark.parametrize(
    "changes",
    [{"prompt": "one and two is"}, {"choices": [" three", " two"]}, {"choices": [" two", " four"]}, {"answer": 1}],
)
def test_the_digest_of_questions_changes_with_their_content(changes: dict[str, Any], tmp_path: Path) -> None:
    digests = [
        of_questions(tmp_path / name, [row]).questions("some").digest
        for name, row in (("a", ASKED), ("b", {**ASKED, **changes}))
    ]
    assert digests[0] != digests[1]


def test_questions_keep_their_digest_under_another_name_and_beside_other_columns(tmp_path: Path) -> None:
    plain = of_questions(tmp_path / "a", [ASKED]).questions("some")
    other = of_questions(tmp_path / "b", [{"id": 3, **ASKED}], name="hazard").questions("hazard")
    assert plain.digest == other.digest


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": ""}, "'prompt' must be a text that is not empty"),
        ({"choices": [" two"]}, "at least two texts"),
        ({"choices": [" two", ""]}, "none of them empty"),
        ({"choices": [" two", " two"]}, "two of the choices are the same"),
        ({"choices": " two"}, "must be a list"),
        ({"answer": 2}, "it must be the index of a choice, 0 to 1"),
        ({"answer": -1}, "it must be the index of a choice, 0 to 1"),
        ({"answer": True}, "it must be the index of a choice, 0 to 1"),
        ({"answer": " two"}, "it must be the index of a choice, 0 to 1"),
    ],
)
def test_a_question_without_a_single_answer_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    domain = of_questions(tmp_path, [ASKED, {**ASKED, **changes}])
    with pytest.raises(HoldfastError, match=rf"line 2: .*{says}"):
        domain.questions("some")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": " \n"}, "'text' must be a text that is not empty"),
        ({"text": 3}, "'text' must be a text that is not empty"),
        ({**PREFERENCE, "chosen": ""}, "'chosen' must be a text that is not empty"),
        ({"prompt": "x", "chosen": "y"}, "no column 'rejected'; it has: prompt, chosen"),
        ({"messages": "hi"}, '"messages" must be a list'),
        ({"messages": [{"role": "assistant"}]}, '"messages" must be a list'),
        ({"messages": TURNS[:1]}, "no turn in 'messages' has the role 'assistant'"),
        ({"messages": []}, "no turn in 'messages' has the role 'assistant'"),
    ],
)
def test_a_row_that_teaches_nothing_is_refused(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    domain = of_rows(tmp_path, [TEXT, row])
    with pytest.raises(HoldfastError, match=rf"line 2: .*{says}"):
        domain.rows("retain")
    with pytest.raises(HoldfastError, match=says):
        domain.digest("retain")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[data.attack_odd]\nfile = "x"', "'attack_odd' is not known here; did you mean attack_ood"),
        ('[data.zzz]\nfile = "x"', "'zzz' is not known here; known: attack, "),
        ('[data.retain]\nfille = "x"', r"\[data.retain\]: 'fille' is not known here; did you mean file"),
        ("[data.retain]\n", "either a file or a dataset"),
        ('[data.retain]\nfile = "x"\ndataset = "y"', "either a file or a dataset"),
        ("[data.retain]\nfile = 3", "every value must be a text"),
        ("[data]\nretain = 3", "must be a section with a file or a dataset"),
        ("data = 3", r"\[data\] must be a section"),
        ("maxlength = 3", "'maxlength' is not known here; did you mean max_length"),
        ("name = 3", "name must be a text"),
        ("max_length = 1", "max_length must be a whole number of tokens, at least 2"),
        ("max_length = 2.5", "max_length must be a whole number of tokens, at least 2"),
        (
            '[questions.hazard]\nfile = "x"\nmeasures = "danger"',
            'measures must be "hazard", "ability", "trainability" or',
        ),
        ('[questions.hazard]\nfile = "x"\ntext = "y"', "'text' is not known here"),
        ("name =", "not valid TOML"),
    ],
)
def test_an_unknown_role_or_key_is_refused_when_the_domain_is_opened(toml: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=says):
        make(tmp_path, toml)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_be_named_and_one_that_is_not_is_missed_when_it_is_asked_for(role: str, tmp_path: Path) -> None:
    domain = make(tmp_path, f'[data.{role}]\nfile = "rows.jsonl"', rows=[TEXT])
    assert domain.rows(role) == (TEXT,)
    for missing in set(ROLES) - {role}:
        assert not domain.has(missing)
        with pytest.raises(HoldfastError, match=rf"no data set for the role '{missing}'.*\[data.{missing}\]"):
            domain.rows(missing)


def test_questions_that_are_not_named_are_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="no questions 'hazard'; it has: some"):
        of_questions(tmp_path, [ASKED]).questions("hazard")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "domain.toml").write_text("schema = true\n")
    with pytest.raises(HoldfastError, match="has schema True; this holdfast reads schema = 1"):
        Domain.open(tmp_path)
    (tmp_path / "domain.toml").write_text("schema = 2\n")
    with pytest.raises(HoldfastError, match="has schema 2; this holdfast reads schema = 1"):
        Domain.open(tmp_path)


def as_toml(value: Any) -> str:
    """A value as TOML writes it inline; what TOML has no word for is left out."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(item) for item in value if item is not None) + "]"
    return json.dumps(value)


WHOLE: dict[str, Any] = {
    "schema": 1,
    "name": "plants",
    "max_length": 16,
    "hazard_words": ["compound"],
    "data": {"retain": {"file": "rows.jsonl"}, "forget": {"file": "rows.jsonl", "text": "text"}},
    "questions": {"some": {"file": "asked.jsonl", "measures": "ability", "prompt": "prompt"}},
}


def used(folder: Path) -> None:
    domain = Domain.open(folder)
    assert isinstance(domain.name, str)
    for role in domain.sources:
        assert domain.digest(role)
    for name in domain.question_sources:
        assert domain.questions(name).digest


@pytest.mark.situation("hostile input", "a field of another type")
def test_a_field_of_another_type_is_used_or_refused_in_one_sentence_that_names_the_file(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every field of domain.toml, of a row of each kind and of a question in turn, at any depth."""
    refused: list[tuple[str, str]] = []
    tried = 0

    def try_out(file: str, toml: dict[str, Any] = WHOLE, row: Any = TEXT, question: Any = ASKED) -> None:
        nonlocal tried
        tried += 1
        lines = "\n".join(f"{key} = {as_toml(value)}" for key, value in toml.items() if value is not None)
        (tmp_path / "domain.toml").write_text(lines)
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        (tmp_path / "asked.jsonl").write_text(json.dumps(question))
        try:
            used(tmp_path)
        except HoldfastError as error:
            refused.append((file, str(error)))

    try_out("")
    assert not refused
    for _, toml in spoilt(WHOLE):
        try_out("domain.toml", toml)
    plain = {**WHOLE, "data": {"retain": {"file": "rows.jsonl"}}}
    for row in (TEXT, CHAT, PREFERENCE):
        for _, spoiled in spoilt(row):
            try_out("rows.jsonl, line 1", plain, row=spoiled)
    for _, spoiled in spoilt(ASKED):
        try_out("asked.jsonl, line 1", question=spoiled)
    record_property("situations", tried)
    assert len(refused) > 250
    # A column that domain.toml names wrongly is missed in the row.
    assert all(
        str(tmp_path / file) in says or (file == "domain.toml" and str(tmp_path) in says) for file, says in refused
    )
    assert all("\n" not in says for _, says in refused)


def test_the_folder_s_name_and_256_tokens_are_the_defaults(tmp_path: Path) -> None:
    domain = make(tmp_path / "botany", "")
    assert (domain.name, domain.max_length) == ("botany", 256)
    domain = make(tmp_path / "botany", 'name = "plants"\nmax_length = 16')
    assert (domain.name, domain.max_length) == ("plants", 16)
    assert of_questions(tmp_path / "zoology", [ASKED]).name == "zoology"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are prepared here and nowhere else."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.mark.usefixtures("hub_cache")
def test_a_hugging_face_data_set_gives_the_rows_that_its_files_hold(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"body": f"{split} words {i}", "id": i} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = tmp_path / "asked"
    asked.mkdir()
    (asked / "train.jsonl").write_text(json.dumps(ASKED) + "\n")
    toml = (
        f'[data.retain]\ndataset = "{folder}"\ntext = "body"\n'
        f'[data.benign]\ndataset = "{folder}"\nsplit = "test"\ntext = "body"\n'
        f'[data.forget]\ndataset = "{folder}"\n'
        f'[questions.some]\ndataset = "{asked}"\n'
    )
    domain = make(tmp_path / "domain", toml)
    assert domain.rows("retain") == tuple({"text": f"train words {i}"} for i in range(3))
    assert domain.rows("benign") == tuple({"text": f"test words {i}"} for i in range(3))
    as_file = of_rows(tmp_path / "file", domain.rows("benign"))
    assert set(domain.digest("benign").values()) == set(as_file.digest("retain").values())
    assert domain.questions("some").questions == (Question("one and one is", (" two", " three"), 0),)
    with pytest.raises(HoldfastError, match=r"row 0: a row needs .*it has: body, id"):
        domain.rows("forget")


def test_name_config_and_split_are_what_the_data_set_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None = None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return [TEXT]

    monkeypatch.setattr(datasets, "load_dataset", load)
    toml = (
        '[data.retain]\ndataset = "owner/name"\n'
        '[data.benign]\ndataset = "owner/name"\nconfig = "small"\nsplit = "train[:10]"\n'
    )
    domain = make(tmp_path, toml)
    assert not asked  # nothing is read before it is asked for
    assert domain.rows("retain") == domain.rows("benign") == (TEXT,)
    assert asked == [("owner/name", None, "train"), ("owner/name", "small", "train[:10]")]


@pytest.mark.parametrize("text", ["no such split\nand a long\ntraceback", ""])
def test_whatever_keeps_a_data_set_from_loading_is_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(text)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    domain = make(tmp_path, '[data.retain]\ndataset = "owner/name"')
    says = text.partition("\n")[0] or "ValueError"
    with pytest.raises(HoldfastError, match=rf"'owner/name' \(split 'train'\) of \[data.retain\].*: {says}$"):
        domain.rows("retain")
