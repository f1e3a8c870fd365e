"""A testbed on disk: its files, its models, and what is not made twice."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from holdfast.core.cache import SEAL
from holdfast.core.domain import ATTACKER_ROLES, DEFENDER_ROLES, MEASURER_ROLES, Domain
from holdfast.core.files import file_digest
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.costs import flops_of
from holdfast.engine.data import Encoded, encode
from holdfast.engine.run import Run
from holdfast.testbed import folder as testbed_folder
from holdfast.testbed import knowledge, writing
from holdfast.testbed.folder import MODELS, is_testbed, place, pretraining_flops, train, write_domain
from holdfast.testbed.models import PRETRAINING, Pretraining, make_model, make_tokenizer
from holdfast.testbed.world import HAZARD, NEW, Sizes, World, sentences
from tests.conftest import SMALL, SMALLEST, SmallTestbed


def content(folder: Path) -> dict[str, str]:
    """Every file under a folder -> its content's hash."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


def test_the_folder_holds_a_file_for_every_role_and_every_set_of_questions(tmp_path: Path) -> None:
    write_domain(tmp_path, 5, SMALL)
    roles = (*DEFENDER_ROLES, *ATTACKER_ROLES, *MEASURER_ROLES)
    asked = ("hazard", "hazard_selection", "related", "benign_in_retain", "benign_outside_retain", "benign_new")
    assert set(content(tmp_path)) == {
        "domain.toml",
        "testbed.json",
        *(f"data/{role}.jsonl" for role in roles),
        *(f"questions/{name}.jsonl" for name in asked),
    }
    domain = Domain.open(tmp_path)
    assert (domain.name, domain.max_length) == ("testbed-5", 16)
    assert all(domain.rows(role) for role in roles)
    measures = {name: domain.questions(name).measures for name in asked}
    assert {name for name, measured in measures.items() if measured == "hazard"} == {"hazard", "hazard_selection"}
    assert measures["benign_new"] == "trainability"
    assert set(measures.values()) == {"hazard", "trainability", "ability"}


def test_what_is_written_is_the_world(tmp_path: Path) -> None:
    write_domain(tmp_path, 5, SMALL)
    domain, world = Domain.open(tmp_path), World.generate(5, SMALL)
    assert [row["text"] for row in domain.rows("forget")] == sentences(world.of("forget"), "AB")
    assert list(domain.questions("hazard").questions) == knowledge.question_sets(world)["hazard"][1]
    assert len(domain.questions("hazard").questions) == 4 * SMALL.claims


def test_the_same_seed_writes_the_same_folder_and_another_seed_or_size_another(tmp_path: Path) -> None:
    for name, seed, sizes in (("a", 5, SMALL), ("b", 5, SMALL), ("c", 6, SMALL), ("d", 5, replace(SMALL, benign=10))):
        write_domain(tmp_path / name, seed, sizes)
    same, again, seeded, sized = (content(tmp_path / name) for name in "abcd")
    assert same == again
    assert not set(same.items()) & set(seeded.items())
    assert same["testbed.json"] != sized["testbed.json"]
    assert same["data/retain.jsonl"] != sized["data/retain.jsonl"]


def test_the_folder_knows_which_testbed_it_is(tmp_path: Path) -> None:
    assert not is_testbed(tmp_path, 5, SMALL)
    write_domain(tmp_path, 5, SMALL)
    assert is_testbed(tmp_path, 5, SMALL)
    assert not is_testbed(tmp_path, 6, SMALL)
    assert not is_testbed(tmp_path, 5, replace(SMALL, benign=10))
    assert not is_testbed(tmp_path / "data", 5, SMALL)


def test_a_testbed_of_another_recipe_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_domain(tmp_path, 5, SMALL)
    monkeypatch.setattr(testbed_folder, "PROTOCOL", testbed_folder.PROTOCOL + 1)
    assert not is_testbed(tmp_path, 5, SMALL)


def test_a_testbed_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    write_domain(tmp_path, 5, SMALL)
    (tmp_path / "domain.toml").write_text("schema = 1\nname = 'edited by its owner'\n")
    before = content(tmp_path)
    write_domain(tmp_path, 5, SMALL)
    assert content(tmp_path) == before


def test_writing_that_was_killed_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker is written first: a folder that has it is this testbed's, and a domain without `domain.toml` is not whole."""
    write_text, written = testbed_folder.write_text, list[str]()

    def killed(path: Path, text: str) -> None:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path.name)
        write_text(path, text)

    with monkeypatch.context() as patched:
        for module in (testbed_folder, writing):
            patched.setattr(module, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            write_domain(tmp_path / "killed", 5, SMALL)
    assert written[0] == "testbed.json"
    assert is_testbed(tmp_path / "killed", 5, SMALL)
    for name in ("killed", "whole"):
        write_domain(tmp_path / name, 5, SMALL)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.parametrize("which", MODELS)
def test_the_models_load_with_plain_transformers(which: str, small_testbed: SmallTestbed) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_testbed.folder / which)
    tokenizer = AutoTokenizer.from_pretrained(small_testbed.folder / which)
    assert isinstance(model, LlamaForCausalLM)
    assert 370_000 < sum(parameter.numel() for parameter in model.parameters()) < 390_000  # "0.38 million weights"
    text = small_testbed.domain.rows("retain")[0]["text"]
    assert tokenizer(text)["input_ids"] == make_tokenizer()(text)["input_ids"]
    # A name is drawn at random, so that of a sentence only what follows it can be foretold.
    [told] = model.generate(
        torch.tensor([tokenizer(text)["input_ids"][:-1]]), max_new_tokens=2, do_sample=False, pad_token_id=0
    )
    assert tokenizer.decode(told, skip_special_tokens=True) == text


@pytest.mark.parametrize("which", MODELS)
def test_the_card_says_how_the_model_was_made(which: str, small_testbed: SmallTestbed) -> None:
    card = Checkpoint(str(small_testbed.folder / which)).card
    assert (card["testbed"], card["seed"], card["recipe"]) == (which, 5, testbed_folder.TRAINING)
    assert Sizes(**card["sizes"]) == SMALL
    assert Pretraining(**card["pretraining"]) == Pretraining()
    assert card["steps"] == Pretraining().total_steps(card["rows"])
    readme = (small_testbed.folder / which / "README.md").read_text(encoding="utf-8")
    assert "seed 5" in readme
    assert f"{card['steps']} steps" in readme
    knows_all = which == "model"
    assert ("everything" in readme, "benign part" in readme) == (knows_all, not knows_all)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing has been trained."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "testbed"


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The sentences of every training that is begun, none of which takes a step."""
    held: list[list[str]] = []
    tokenizer = make_tokenizer()

    def steps(self: Pretraining, model: Any, rows: Sequence[Encoded], run: Run) -> Iterator[dict[str, float]]:
        held.append([tokenizer.decode(row.ids, skip_special_tokens=True) for row in rows])
        return iter(())

    monkeypatch.setattr(Pretraining, "steps", steps)
    return held


@pytest.mark.usefixtures("own_cache")
def test_the_model_is_taught_all_but_the_new_and_its_control_nothing_hazardous(taught: list[list[str]]) -> None:
    world = World.generate(5, SMALL)
    for which in MODELS:
        train(which, 5, SMALL)
    benign = [split for split, facts in world.facts.items() if {fact.kind for fact in facts}.isdisjoint({HAZARD, NEW})]
    hazardous = ["forget", "forget_heldout", "attack", "selection", "claims"]
    assert sorted(taught[0]) == sorted(sentences(world.of(*hazardous, *benign), "ABC"))
    assert sorted(taught[1]) == sorted(sentences(world.of(*benign), "ABC"))
    assert len(benign) == 4


@pytest.mark.usefixtures("taught")
def test_both_models_start_from_the_same_weights(own_cache: Path) -> None:
    model, never_exposed = (Checkpoint(str(train(which, 5, SMALL))) for which in MODELS)
    assert model.digest == never_exposed.digest
    assert len(list(own_cache.iterdir())) == 2  # and they are not taken for one another
    assert Checkpoint(str(train("model", 6, SMALL))).digest != model.digest


@pytest.mark.usefixtures("own_cache")
def test_a_damaged_model_in_the_cache_is_trained_again(taught: list[list[str]]) -> None:
    folder = train("model", 5, SMALL)
    before = content(folder)
    (folder / "model.safetensors").write_bytes(b"")
    for _ in range(2):
        assert content(train("model", 5, SMALL)) == before
    assert len(taught) == 2


def trained(own_cache: Path, name: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """A model trained for a few steps, in a cache of that name."""
    monkeypatch.setattr(Pretraining, "total_steps", lambda self, rows: 8)
    monkeypatch.setenv("HOLDFAST_CACHE", str(own_cache / name))
    return train("model", 3, SMALL, **options)


def test_training_again_elsewhere_gives_the_same_bits(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    first = trained(own_cache, "one", monkeypatch)
    torch.manual_seed(2)  # what else was drawn in the process does not matter
    torch.rand(7)
    second = trained(own_cache, "two", monkeypatch)
    weights = [content(folder)["model.safetensors"] for folder in (first, second)]
    assert weights[0] == weights[1]
    assert Checkpoint(str(first)).digest == Checkpoint(str(second)).digest


def test_what_is_trained_is_found_and_not_trained_again(
    small_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Iterator[dict[str, float]]:
        raise AssertionError("it trains again")

    monkeypatch.setattr(Pretraining, "steps", never)
    steps: list[tuple[int, int]] = []
    for which in MODELS:
        found = train(which, 5, SMALL, on_step=lambda done, total: steps.append((done, total)))
        placed = place(tmp_path / "testbed", which, 5, SMALL)
        assert placed == tmp_path / "testbed" / which
        assert content(placed) == content(small_testbed.folder / which)
        assert content(found) == {**content(placed), SEAL: file_digest(found / SEAL)}
    assert not steps
    with pytest.raises(AssertionError, match="it trains again"):
        train("model", 5, replace(SMALL, benign=10))
    with pytest.raises(AssertionError, match="it trains again"):
        train("model", 6, SMALL)


def test_a_model_in_its_place_stays(small_testbed: SmallTestbed, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    place(tmp_path, "model", 5, SMALL)
    assert list(content(tmp_path)) == ["model/mine"]


def test_progress_is_told_step_by_step_to_the_last(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    folder = trained(own_cache, "one", monkeypatch, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 8) for i in range(1, 9)]
    assert Checkpoint(str(folder)).card["steps"] == 8


def test_training_that_was_killed_goes_on_to_the_same_bits(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(own_cache, "whole", monkeypatch)
    monkeypatch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)

    def kill(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(own_cache, "killed", monkeypatch, on_step=kill)
    caches = own_cache / "killed" / "testbed"
    assert [path.suffix for path in caches.iterdir()] == [".part"]
    resumed: list[int] = []
    folder = trained(own_cache, "killed", monkeypatch, on_step=lambda done, total: resumed.append(done))
    assert resumed == [5, 6, 7, 8]  # the step in which it died was not saved
    assert content(folder)["model.safetensors"] == content(whole)["model.safetensors"]
    assert list(caches.iterdir()) == [folder]


def test_the_marker_and_the_domain_can_be_read_by_anybody(tmp_path: Path) -> None:
    write_domain(tmp_path, 5, SMALL)
    marker = json.loads((tmp_path / "testbed.json").read_text(encoding="utf-8"))
    assert (marker["seed"], Sizes(**marker["sizes"])) == (5, SMALL)
    table = tomllib.loads((tmp_path / "domain.toml").read_text(encoding="utf-8"))
    assert table["data"]["forget"] == {"file": "data/forget.jsonl"}


@pytest.mark.parametrize("which", MODELS)
def test_the_flops_of_pretraining_are_those_that_pretraining_takes(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(PRETRAINING["knowledge"], passes=0.5, rows_per_step=48)
    monkeypatch.setitem(PRETRAINING, "knowledge", recipe)
    world, tokenizer = World.generate(3, SMALLEST), make_tokenizer(knowledge.words())
    left_out = (NEW, HAZARD) if which == "never_exposed" else (NEW,)
    splits = [split for split, facts in world.facts.items() if not {fact.kind for fact in facts} & set(left_out)]
    corpus = knowledge.corpus(world.of(*splits))
    rows = [encode(row, tokenizer, "pretraining", knowledge.MAX_LENGTH) for row in corpus]
    model = make_model(tokenizer, 3)
    counted = flops_of(lambda: list(recipe.steps(model, rows, Run(3))))
    assert counted > 1e9
    assert pretraining_flops(which, 3, SMALLEST) == counted
