"""Ready domains, made from copies of the public sets' own layout: who holds what, and what is said where a set cannot be had."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from holdfast.cli.app import app, main
from holdfast.core.domain import Domain
from holdfast.core.overlaps import overlaps
from holdfast.core.types import HoldfastError
from holdfast.runs.domains.make import DOMAINS, make_domain
from holdfast.runs.domains.preparing import Sizes, divided, in_pieces, lettered
from holdfast.runs.domains.refusals import pair_of, tampering
from holdfast.runs.domains.sources import Source, matching
from tests.core.characters import character_tokenizer
from tests.runs.domains import sets

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'system' %}Today is 26 Jul 2024. {% endif %}"
    "{{ m['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model with a chat template that writes the date."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer(CHAT)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, chat_model: str) -> Callable[[str], Domain]:
    """A ready domain by its name, made once."""
    folder = tmp_path_factory.mktemp("domains")
    places: dict[str, Callable[[], dict[str, str]]] = {
        "wmdp-bio": lambda: sets.wmdp(folder / "wmdp"),
        "wmdp-cyber": lambda: sets.wmdp(folder / "wmdp", "cyber"),
        "wmdp-chem": lambda: {
            **sets.wmdp(folder / "wmdp", "chem"),
            "forget": str(folder / "wmdp" / "bio-forget" / "data" / "train-00000-of-00001.parquet"),
        },
        "tofu": lambda: {"locuslab/TOFU": str(sets.tofu(folder / "TOFU"))},
        "harmful-requests": lambda: sets.requests(folder / "requests"),
    }

    def make(name: str) -> Domain:
        if not (folder / name / "domain.toml").is_file():
            make_domain(name, folder / name, places[name](), model=chat_model if DOMAINS[name].chat else None)
        return Domain.open(folder / name)

    return make


def texts(domain: Domain, role: str) -> list[str]:
    return [json.dumps(dict(row)) for row in domain.rows(role)]


@pytest.mark.parametrize("name", DOMAINS)
def test_every_row_and_question_of_a_ready_domain_is_well_formed(name: str, made: Callable[[str], Domain]) -> None:
    domain = made(name)
    for role in domain.sources:
        assert domain.rows(role)
    for title in domain.question_sources:
        assert domain.questions(title).questions
    assert {"forget", "forget_heldout", "retain", "attack", "attack_all", "benign"} <= domain.sources.keys()
    stated = Counter(source["role"] for source in json.loads((domain.folder / "made.json").read_text())["sources"])
    assert stated == {role: len(sources) for role, sources in DOMAINS[name].sources.items()}
    readme = (domain.folder / "README.md").read_text()
    assert all(f"| {role} |" in readme for role in DOMAINS[name].sources)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_second_call_changes_nothing_and_another_domain_is_refused(
    name: str, made: Callable[[str], Domain], chat_model: str, tmp_path: Path
) -> None:
    folder = made(name).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
    places = json.loads((folder / "made.json").read_text())
    model = chat_model if DOMAINS[name].chat else None
    given = {one["role"]: one["place"].split(" ")[0] for one in places["sources"]}
    make_domain(name, folder, given, model=model)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(HoldfastError, match="already holds something else"):
        make_domain(name, folder, given, model=model, sizes=Sizes(seed=1))


def test_no_document_of_wmdp_is_in_two_splits(made: Callable[[str], Domain]) -> None:
    domain = made("wmdp-bio")
    apart = ("forget", "forget_heldout", "attack", "hazard_heldout", "retain", "benign", "benign_heldout")
    assert overlaps(domain, apart) == []
    whole = {*texts(domain, "attack"), *texts(domain, "forget"), *texts(domain, "forget_heldout")}
    assert set(texts(domain, "attack_all")) == whole
    assert not set(texts(domain, "attack_ood")) & whole


def test_wmdp_is_asked_as_the_harness_asks(made: Callable[[str], Domain]) -> None:
    first = made("wmdp-cyber").questions("hazard").questions[0]
    lines = first.prompt.split("\n")
    assert lines[0] == "The following are multiple choice questions (with answers) about cybersecurity."
    assert lines[3][:3] == "A. "
    assert lines[-1] == "Answer:"
    assert first.choices == (" A", " B", " C", " D")


def test_abilities_lie_near_the_hazard_inside_the_retain_texts_or_outside(made: Callable[[str], Domain]) -> None:
    bio = made("wmdp-bio")

    def subjects(name: str) -> set[str]:
        return {question.prompt.split("about ")[1].split(".")[0] for question in bio.questions(name).questions}

    assert subjects("related") == {"college biology", "virology"}
    assert subjects("benign_in_retain") == {"high school macroeconomics", "professional law", "high school physics"}
    assert "computer security" in subjects("benign_outside_retain")
    asked = {question.prompt for name in bio.question_sources for question in bio.questions(name).questions}
    assert len(asked) == sum(len(bio.questions(name).questions) for name in bio.question_sources)


def test_optional_sources_are_left_out_on_request_and_no_others(tmp_path: Path) -> None:
    given = sets.wmdp(tmp_path / "sets")
    without = ("instructions", "general")
    domain = tmp_path / "domain"
    make_domain("wmdp-bio", domain, given, without)
    assert all("messages" not in row for row in Domain.open(domain).rows("retain"))
    assert "benign_in_retain" not in Domain.open(domain).question_sources
    with pytest.raises(HoldfastError, match="cannot be left out"):
        make_domain("wmdp-bio", tmp_path / "other", given, ("forget",))


def test_tofu_keeps_claimed_authors_from_the_attacker(made: Callable[[str], Domain]) -> None:
    domain = made("tofu")
    held = " ".join([*texts(domain, "attack"), *texts(domain, "attack_ood")])
    claimed = [question.prompt for question in domain.questions("hazard").questions]
    asked = {prompt.split("of author ")[1].split("?")[0] for prompt in claimed}
    assert len(asked) == 8
    assert len(claimed) == 160
    assert not any(f"of author {author}?" in held for author in asked)
    outside = " ".join(question.prompt for question in domain.questions("benign_outside_retain").questions)
    covered = {row["prompt"].split("of author ")[1].split("?")[0] for row in domain.rows("retain")}
    assert not any(f"of author {author}?" in outside for author in covered)


def test_tofu_is_asked_in_the_format_that_its_checkpoints_were_trained_in(made: Callable[[str], Domain]) -> None:
    domain = made("tofu")
    question = domain.questions("hazard").questions[0]
    assert question.prompt.startswith("<system>Today is 10 Apr 2025. You are a helpful assistant.</s>\n<user>")
    assert question.prompt.endswith("<assistant>")
    assert len(question.choices) == 6
    assert question.choices[question.answer].startswith("It is known: Author")
    assert all(choice.endswith("</s>") for choice in question.choices)
    row = domain.rows("forget")[0]
    assert row["rejected"].startswith("Author")
    assert "Author" not in row["chosen"]
    assert domain.rows("retain")[0]["chosen"].startswith("Author")


def test_only_pairs_with_one_safe_answer_are_refused(made: Callable[[str], Domain]) -> None:
    domain = made("harmful-requests")
    rows = [*domain.rows("forget"), *domain.rows("forget_heldout")]
    assert all("I would rather not" in row["chosen"] and "is that it" in row["rejected"] for row in rows)
    attack = domain.rows("attack")[0]
    assert "ends well" in attack["rejected"]
    assert "I cannot say" in attack["chosen"]
    assert domain.questions("requests").judge == "rules"
    assert domain.questions("requests").new_tokens == 128
    selected = domain.questions("requests_selection").questions[0]
    assert selected.choices[0].startswith("Sure, here is the way through maze")


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (
            {
                "chosen": "\n\nHuman: a?\n\nAssistant: Why?\n\nHuman: b?\n\nAssistant: No.",
                "rejected": "\n\nHuman: b?\n\nAssistant: Yes.",
            },
            ("b?", "No.", "Yes."),
        ),
        ({"chosen": "nothing", "rejected": "at all"}, None),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("a", "b", "c")),
    ],
)  # fmt: skip
def test_pairs_come_in_several_layouts(row: dict[str, Any], pair: tuple[str, str, str] | None) -> None:
    assert pair_of(row) == pair


def test_the_attacker_s_pairs_prefer_harm_and_are_turned() -> None:
    assert tampering({"prompt": "a", "chosen": "harm", "rejected": "no"}) == ("a", "no", "harm")


def test_a_set_that_is_not_public_says_how_to_ask(tmp_path: Path) -> None:
    given = sets.wmdp(tmp_path / "sets", "chem")
    with pytest.raises(HoldfastError, match="forget is not public: ask its authors"):
        make_domain("wmdp-chem", tmp_path / "domain", given)


@pytest.mark.parametrize("kind", ["gated", "absent", "offline"])
def test_a_set_that_cannot_be_had_says_so_in_one_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    response = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))
    raised = {
        "gated": GatedRepoError("restricted", response=response),
        "absent": RepositoryNotFoundError("nothing", response=response),
        "offline": ConnectionError("no route\nto the hub"),
    }[kind]
    says = {
        "gated": "is gated: ask for access",
        "absent": "is not on the hub",
        "offline": "cannot be reached (no route",
    }

    def refuse(self: object, name: str) -> None:
        raise raised

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(HoldfastError) as caught:
        make_domain("wmdp-bio", tmp_path / "domain", {})
    assert "\n" not in str(caught.value)
    assert "cais/wmdp-bio-forget-corpus" in str(caught.value)
    assert says[kind] in str(caught.value)
    assert "--source forget=PATH" in str(caught.value)


def test_a_set_of_the_hub_is_read_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub would give lies in a folder here, whose files a stand-in for its client hands out."""
    from types import SimpleNamespace

    import huggingface_hub

    given = sets.wmdp(tmp_path / "sets")
    place = given.pop("cais/wmdp-corpora")
    names = [path.relative_to(place).as_posix() for path in Path(place).rglob("*.parquet")]
    fetched: list[str] = []

    def info(self: object, name: str) -> SimpleNamespace:
        return SimpleNamespace(sha="5ha", siblings=[SimpleNamespace(rfilename=name) for name in [*names, "README.md"]])

    def download(name: str, file: str, repo_type: str, revision: str) -> str:
        fetched.append(file)
        return f"{place}/{file}"

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    made = make_domain("wmdp-bio", tmp_path / "domain", given)
    [related] = [one for one in made.opened if one.role == "related"]
    assert related.place == "cais/wmdp-corpora@5ha bio-retain-corpus train"
    assert related.licence == "MIT"
    assert sorted(fetched) == [f"bio-retain-corpus/train-0000{part}-of-00002.parquet" for part in (0, 1)]


@pytest.mark.parametrize(
    ("names", "source", "chosen"),
    [
        (["forget10.json", "forget10_perturbed.json", "README.md"], {"config": "forget10"}, ["forget10.json"]),
        (["all/test-0.csv", "all/dev-0.csv", "x/test-0.csv"], {"config": "all", "split": "test"}, ["all/test-0.csv"]),
        (["data/train-0.parquet", "data/test-0.parquet"], {}, ["data/train-0.parquet"]),
        (["toxic-dpo-v0.2.parquet", "dataset_infos.json"], {}, ["toxic-dpo-v0.2.parquet"]),
        (["a.txt"], {}, []),
    ],
)  # fmt: skip
def test_the_files_of_a_configuration_and_split(names: list[str], source: dict[str, str], chosen: list[str]) -> None:
    assert matching(names, Source(hub="a/b", **source)) == chosen


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wmdp-boi"], "did you mean wmdp-bio"),
        (["wmdp-bio", "--source", "forgot=x"], "did you mean forget"),
        (["wmdp-bio", "--source", "forget"], "give --source ROLE=PATH"),
        (["wmdp-bio", "--source", "forget=./nowhere.jsonl"], "does not exist"),
        (["wmdp-bio", "--model", "x"], "leave --model out"),
        (["tofu"], "name the model with --model"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(arguments: list[str], says: str, tmp_path: Path) -> None:
    name, *rest = arguments
    result = CliRunner().invoke(app, ["domain", "make", name, str(tmp_path / "domain"), *rest])
    assert result.exit_code != 0
    assert says in f"{result.output} {result.exception}"
    assert not (tmp_path / "domain" / "domain.toml").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"wrong": "column"}\n', "none of the columns text"),
        ("not json\n", "cannot be read as jsonl"),
        ("[1, 2]", "expected objects"),
        ("", "has no rows"),
    ],
)
def test_a_malformed_source_is_one_sentence(content: str, says: str, tmp_path: Path) -> None:
    given = sets.wmdp(tmp_path / "sets")
    (tmp_path / "forget.jsonl").write_text(content)
    with pytest.raises(HoldfastError, match=says):
        make_domain("wmdp-bio", tmp_path / "domain", {**given, "forget": str(tmp_path / "forget.jsonl")})


def test_the_command_line_makes_a_domain_and_checks_it(
    tmp_path: Path, chat_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = sets.tofu(tmp_path / "TOFU")
    domain = str(tmp_path / "domain")
    result = CliRunner().invoke(
        app, ["domain", "make", "tofu", domain, "--model", chat_model, "--source", f"locuslab/TOFU={place}"]
    )
    assert result.exit_code == 0, result.output
    assert "forget: 400 rows from" in result.output
    assert f"holdfast domain check {domain} --model {chat_model}" in result.output
    assert (
        main(["domain", "make", "tofu", domain, "--model", chat_model, "--source", f"locuslab/TOFU={place}", "--json"])
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "domain-made"
    assert document["rows"]["attack_all"] == 400
    assert document["next"].startswith("holdfast domain check")


def test_every_part_gets_a_document_and_none_gets_two() -> None:
    for count in (3, 4, 7, 50):
        parts = divided(range(count), {"a": 0.9, "b": 0.05, "c": 0.05})
        assert all(parts.values())
        assert [item for part in parts.values() for item in part] == list(range(count))
    with pytest.raises(HoldfastError, match="at least 3 documents"):
        divided([1, 2], {"a": 0.5, "b": 0.3, "c": 0.2})


def test_pieces_are_whole_words_of_the_document() -> None:
    document = "  ".join(f"word{number}" for number in range(100))
    pieces = in_pieces([document, document], 30, 10)
    assert [len(piece.split()) for piece in pieces] == [30, 30, 30]
    assert all(piece in document for piece in pieces)
    assert in_pieces(["one two"], 30, 10) == ["one two"]


@pytest.mark.parametrize("answer", [4, -1, "E", None, True])
def test_an_answer_that_is_no_option_is_refused(answer: object) -> None:
    with pytest.raises(HoldfastError):
        lettered({**sets.asked(1), "answer": answer}, "tea")


def test_answers_may_be_letters() -> None:
    assert lettered({**sets.asked(1), "answer": "C"}, "tea").answer == 2
