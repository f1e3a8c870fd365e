"""Whatever is wrong with the input: one sentence that names it and says what to do, a non-zero exit, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from holdfast.cli.app import main
from holdfast.core.records import SCHEMA, CampaignPlan, CellResult
from holdfast.runs.standing import Standing
from tests.cli.test_cli import run_here
from tests.conftest import SmallTestbed
from tests.core.characters import character_tokenizer


@dataclass(frozen=True)
class Place:
    """A model, a domain and a place for the output that a test may break."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def domain(self) -> Path:
        return self.folder / "domain"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def toml(self, old: str, new: str) -> None:
        """Change `domain.toml`."""
        path = self.domain / "domain.toml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def data(self, role: str, *lines: str) -> None:
        """Other lines for a role."""
        (self.domain / "data" / f"{role}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def question(self, **changes: Any) -> None:
        """A change of the first hazard question; None takes the column away."""
        path = self.domain / "questions" / "hazard.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        first = {**json.loads(lines[0]), **changes}
        lines[0] = json.dumps({key: value for key, value in first.items() if value is not None})
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def weights(self, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Change the model's tensors."""
        path = self.model / "model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path, metadata={"format": "pt"})

    def tokenizer(self, **changes: Any) -> None:
        """A tokenizer of characters in place of the testbed's."""
        for path in self.model.glob("tokenizer*"):
            path.unlink()
        words = character_tokenizer()
        for name, value in changes.items():
            setattr(words, name, value)
        words.save_pretrained(self.model)


@pytest.fixture
def place(tiny_testbed: SmallTestbed, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    shutil.copytree(tiny_testbed.folder / "model", made.model)
    shutil.copytree(tiny_testbed.folder, made.domain, ignore=shutil.ignore_patterns("model", "never_exposed"))
    yield made
    made.folder.chmod(0o755)


def everything_under(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sentence_of(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], keep_partial: bool = False
) -> str:
    """Run a command that must fail properly; its sentence."""
    before = everything_under(place.folder)
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status not in (0, None)
    [sentence] = printed.err.splitlines()
    assert sentence.startswith("holdfast: ")
    assert "Traceback" not in printed.out + printed.err
    after = everything_under(place.folder)
    if keep_partial:
        assert {path: content for path, content in after.items() if path in before} == before
    else:
        assert after == before
    return sentence


def safeguard(place: Place, *more: str) -> list[str]:
    common = ["--model", str(place.model), "--domain", str(place.domain), "--out", str(place.out)]
    return ["safeguard", "random-mapping", *common, "--set", "random-mapping.outer_steps=2", *more]


def attack(place: Place, *more: str, preset: str = "full-adamw-1e-3") -> list[str]:
    return [
        "attack",
        preset,
        "--model",
        str(place.model),
        "--domain",
        str(place.domain),
        "--out",
        str(place.out),
        *more,
    ]


def evaluate(place: Place, *more: str) -> list[str]:
    return ["evaluate", "--model", str(place.model), "--domain", str(place.domain), *more]


def audit(place: Place, *more: str, model: Path | None = None, undefended: Path | None = None) -> list[str]:
    return [
        "audit", "--model", str(model or place.model), "--undefended", str(undefended or place.model),
        "--domain", str(place.domain), "--out", str(place.out), *more,
    ]  # fmt: skip


Command = Callable[..., list[str]]
Break = Callable[[Place], object]


def nan(held: dict[str, torch.Tensor]) -> None:
    held["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def fewer_words(held: dict[str, torch.Tensor]) -> None:
    held.update({name: held[name][:50].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")})


def truncate(place: Place) -> None:
    path = place.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(place: Place) -> None:
    (place.model / "model.safetensors").unlink()
    (place.model / "pytorch_model.bin").write_bytes(b"\x80\x04 whatever is in here is never read")


def without_a_shard(place: Place) -> None:
    (place.model / "model.safetensors").rename(place.model / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (place.model / "model.safetensors.index.json").write_text(json.dumps(index))


def replaced(place: Place, model: PreTrainedModel) -> None:
    """Another model under the testbed's tokenizer."""
    for name in ("model.safetensors", "config.json", "holdfast.json"):
        (place.model / name).unlink()
    model.save_pretrained(place.model)


def few_positions(place: Place) -> None:
    """A table of positions, which ends where the config says; rotary ones go on."""
    replaced(place, GPT2LMHeadModel(GPT2Config(vocab_size=255, n_embd=16, n_layer=1, n_head=2, n_positions=8)))


def config(**changes: Any) -> Break:
    def change(place: Place) -> None:
        path = place.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return change


MODELS: dict[str, tuple[Break, tuple[str, ...]]] = {
    "NaN in the weights": (lambda p: p.weights(nan), ("not finite", "up_proj", "restore")),
    "a truncated safetensors file": (truncate, ("model.safetensors", "damaged", "restore")),
    "a tensor that is missing": (
        lambda p: p.weights(lambda held: held.pop("model.layers.0.mlp.up_proj.weight")),
        ("lack", "up_proj", "restore"),
    ),
    "pickled weights only": (pickled, ("no safetensors weights", "never loads pickles", "safe_serialization")),
    "no config": (lambda p: (p.model / "config.json").unlink(), ("not a Hugging Face model", "config.json")),
    "a config that is not JSON": (lambda p: (p.model / "config.json").write_text("{"), ("config.json", "not valid JSON")),
    "a config that is no object": (lambda p: (p.model / "config.json").write_text("[]"), ("config.json", "restore")),
    "a config that contradicts itself": (config(num_attention_heads=5), ("cannot be loaded", "(5)")),
    "a config of another size": (
        config(hidden_size=48, head_dim=12), ("do not fit its config.json", "lm_head.weight", "[255, 48]", "restore")
    ),
    "a dropout that is no share": (config(attention_dropout=2.0), ("attention_dropout is 2.0", "from 0 to 1")),
    "a shard that is missing": (without_a_shard, ("cannot be loaded", "model-00002-of-00002.safetensors")),
    "fewer positions than a row has": (few_positions, ("only 8 positions", "max_length = 16", "domain.toml")),
    "an unknown architecture": (config(model_type="perpetuum"), ("cannot be loaded", "perpetuum")),
    "no tokenizer": (
        lambda p: [path.unlink() for path in p.model.glob("tokenizer*")],
        ("tokenizer", "cannot be loaded", "save_pretrained"),
    ),
    "a tokenizer that is not JSON": (lambda p: (p.model / "tokenizer.json").write_text("{"), ("tokenizer", "loaded")),
    "a tokenizer of another model": (
        lambda p: (
            p.weights(fewer_words), config(vocab_size=50)(p),
        ),
        ("token ids", "embeddings", "do not belong together"),
    ),
    "no model": (lambda p: shutil.rmtree(p.model), ("there is no model folder", "/model;", "hub id")),
    "a damaged card": (lambda p: (p.model / "holdfast.json").write_text("{"), ("holdfast.json", "damaged", "remove it")),
    "a card that is no object": (lambda p: (p.model / "holdfast.json").write_text("[]"), ("holdfast.json", "damaged")),
}  # fmt: skip

FOUND_LATE = (
    "a tensor that is missing", "a config of another size", "a shard that is missing", "a tokenizer of another model",
)  # fmt: skip
CARDS = ("a damaged card", "a card that is no object")


@pytest.mark.situation("damaged file", "a model's folder")
@pytest.mark.parametrize(
    ("what", "command"),
    [
        pytest.param(what, command, id=f"{what}, {command.__name__}")
        for what in MODELS
        for command in (safeguard, attack, evaluate)
        if not (what in CARDS and command is evaluate)  # which reads none
    ],
)
def test_a_broken_model(
    what: str, command: Command, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, said = MODELS[what]
    spoil(place)
    # What only a whole load shows is found in the jobs of an attack, whose failed cells are on record.
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    found_late = command is attack and what in FOUND_LATE
    sentence = sentence_of(place, capsys, command(place), keep_partial=found_late)
    assert all(words in sentence for words in said), sentence


DOMAINS: dict[str, tuple[Command, Break, tuple[str, ...]]] = {
    "no domain": (safeguard, lambda p: shutil.rmtree(p.domain), ("is not a domain", "domain.toml")),
    "a domain that is a file": (
        lambda p: [word if word != str(p.domain) else str(p.domain / "domain.toml") for word in evaluate(p)],
        lambda p: None, ("domain.toml is not a domain",),
    ),
    "data that is no section": (
        safeguard, lambda p: (p.domain / "domain.toml").write_text("schema = 1\ndata = 3\n"), ("[data] must be a section",)
    ),
    "nothing to measure": (
        evaluate, lambda p: (p.domain / "domain.toml").write_text("schema = 1\n"), ("nothing to measure", "[questions.…]")
    ),
    "no domain.toml": (evaluate, lambda p: (p.domain / "domain.toml").unlink(), ("is not a domain",)),
    "a broken domain.toml": (attack, lambda p: p.toml("schema = 1", "schema = ["), ("not valid TOML", "domain.toml")),
    "another schema": (safeguard, lambda p: p.toml("schema = 1", "schema = 2"), ("schema 2", "schema = 1")),
    "an unknown role": (safeguard, lambda p: p.toml("[data.retain]", "[data.retian]"), ("'retian'", "did you mean retain")),
    "an unknown key": (safeguard, lambda p: p.toml("max_length", "max_lenght"), ("'max_lenght'", "did you mean max_length")),
    "a file and a dataset": (
        safeguard, lambda p: p.toml('file = "data/forget.jsonl"', 'file = "a"\ndataset = "b"'), ("either a file or a dataset",)
    ),
    "a measure there is not": (
        evaluate, lambda p: p.toml('measures = "hazard"', 'measures = "danger"'), ("measures must be", '"hazard"')
    ),
    "a length of no number": (safeguard, lambda p: p.toml("max_length = 16", 'max_length = "long"'), ("max_length",)),
    "a role that is not named": (
        safeguard, lambda p: p.toml('[data.forget_heldout]\nfile = "data/forget_heldout.jsonl"\n', ""),
        ("'forget_heldout'", "[data.forget_heldout]"),
    ),
    "a role that an attack needs": (
        lambda p: attack(p, preset="full-adamw-1e-3-mixed"),
        lambda p: p.toml('[data.benign]\nfile = "data/benign.jsonl"\n', ""), ("'benign'", "[data.benign]"),
    ),
    "a data file that is missing": (
        safeguard, lambda p: (p.domain / "data" / "retain.jsonl").unlink(), ("retain.jsonl", "does not exist")
    ),
    "malformed JSON": (
        safeguard, lambda p: p.data("retain", '{"text": "a"}', "{oops"), ("retain.jsonl, line 2", "not valid JSON")
    ),
    "JSON that is no object": (attack, lambda p: p.data("attack", '["a"]'), ("attack.jsonl, line 1", "list")),
    "a row without its column": (safeguard, lambda p: p.data("forget", '{"body": "a"}'), ("forget.jsonl, line 1", "body")),
    "a row without the named column": (
        safeguard, lambda p: p.toml('file = "data/forget.jsonl"', 'file = "data/forget.jsonl"\ntext = "body"'),
        ("no column 'body'", "it has: text"),
    ),
    "a preference with one side": (
        safeguard, lambda p: p.data("forget", '{"prompt": "a", "chosen": "b"}'), ("line 1", "'rejected'", "prompt, chosen")
    ),
    "a text that is a number": (safeguard, lambda p: p.data("forget", '{"text": 3}'), ("line 1", "must be a text")),
    "a text that is NaN": (safeguard, lambda p: p.data("forget", '{"text": NaN}'), ("line 1", "must be a text")),
    "an empty text": (safeguard, lambda p: p.data("forget", '{"text": "  "}'), ("forget.jsonl, line 1", "not empty")),
    "an empty set": (safeguard, lambda p: p.data("forget", ""), ("'forget'", "empty", "at least one row")),
    "half a character": (safeguard, lambda p: p.data("forget", '{"text": "\\ud800"}'), ("surrogate", "line 1")),
    "data that is no text": (
        safeguard, lambda p: (p.domain / "data" / "forget.jsonl").write_bytes(b"\xff\xfe\x00"), ("not UTF-8", "forget.jsonl")
    ),
    "a conversation without a chat template": (
        safeguard,
        lambda p: p.data("retain", '{"messages": [{"role": "assistant", "content": "a"}]}'),
        ("chat template", "'text'"),
    ),
    "a conversation without an assistant": (
        safeguard, lambda p: p.data("retain", '{"messages": [{"role": "user", "content": "a"}]}'), ("'assistant'", "line 1")
    ),
    "a conversation that is none": (safeguard, lambda p: p.data("retain", '{"messages": "a"}'), ("must be a list", "line 1")),
    "an answer out of range": (evaluate, lambda p: p.question(answer=4), ("'answer' is 4", "0 to 3")),
    "an answer that is no index": (evaluate, lambda p: p.question(answer="2"), ("'answer' is '2'",)),
    "one choice": (evaluate, lambda p: p.question(choices=[" a"], answer=0), ("'choices'", "at least two")),
    "two equal choices": (attack, lambda p: p.question(choices=[" a", " a"], answer=0), ("the same", "no single answer")),
    "a question without a prompt": (evaluate, lambda p: p.question(prompt=None), ("no 'prompt'", "line 1")),
    "an empty set of questions": (
        evaluate, lambda p: (p.domain / "questions" / "hazard.jsonl").write_text(""), ("'hazard'", "empty")
    ),
    "no hazard to be measured": (
        attack,
        lambda p: (
            p.toml('[questions.hazard]\nfile = "questions/hazard.jsonl"\nmeasures = "hazard"\n', ""),
            p.toml('[questions.hazard_selection]\nfile = "questions/hazard_selection.jsonl"\nmeasures = "hazard"\n', ""),
            p.toml('[data.hazard_heldout]\nfile = "data/hazard_heldout.jsonl"\n', ""),
        ),
        ("neither hazard questions nor rows", "[questions.hazard]"),
    ),
    "a dataset out of reach": (
        safeguard, lambda p: p.toml('file = "data/forget.jsonl"', 'dataset = "nobody/nothing"'),
        ("'nobody/nothing'", "cannot be loaded"),
    ),
}  # fmt: skip


@pytest.mark.situation("hostile input", "a domain")
@pytest.mark.parametrize("what", DOMAINS)
def test_a_broken_domain(what: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    command, spoil, said = DOMAINS[what]
    spoil(place)
    sentence = sentence_of(place, capsys, command(place))
    assert all(words in sentence for words in said), sentence


WORDS: dict[str, tuple[Callable[[Place], list[str]], tuple[str, ...]]] = {
    "an unknown safeguard": (
        lambda p: [word.replace("random-mapping", "random-maping") for word in safeguard(p)],
        ("'random-maping'", "did you mean random-mapping"),
    ),
    "an unknown attack": (lambda p: attack(p, preset="full-adam-1e-3"), ("'full-adam-1e-3'", "did you mean")),
    "an unknown suite": (lambda p: audit(p, "--suite", "quik"), ("'quik'", "did you mean quick")),
    "nothing of that name to list": (lambda p: ["list", "tarr"], ("'tarr'", "did you mean tar")),
    "a setting that is none": (lambda p: safeguard(p, "--set", "outer_steps"), ("PRESET.FIELD=VALUE",)),
    "a setting of another preset": (lambda p: safeguard(p, "--set", "tar.outer_steps=3"), ("'tar' is not in this run",)),
    "a setting of no field": (
        lambda p: safeguard(p, "--set", "random-mapping.outer_stepps=3"), ("'outer_stepps'", "did you mean outer_steps")
    ),
    "a setting of another type": (
        lambda p: safeguard(p, "--set", "random-mapping.outer_steps=few"), ("random-mapping.outer_steps", "integer", '"few"')
    ),
    "a setting that is nested": (lambda p: safeguard(p, "--set", "random-mapping.retain=1"), ("'retain'", "did you mean")),
    "a setting that is infinite": (
        lambda p: attack(p, "--set", "full-adamw-1e-3.learning_rate=1e400"), ("learning_rate", "finite")
    ),
    "an optimizer there is not": (
        lambda p: attack(p, "--set", "full-adamw-1e-3.optimizer=lamb"), ("optimizer", "'adamw'", '"lamb"')
    ),
    "milestones that are none": (lambda p: attack(p, "--milestones", "0,many"), ("--milestones 0,many", "0,8,64,512")),
    "a device that is not there": (lambda p: evaluate(p, "--device", "cuda:7"), ("'cuda:7'", "--device cpu")),
    "an unknown precision": (lambda p: evaluate(p, "--precision", "int3"), ("--precision int3", "float32")),
    "pure half precision": (
        lambda p: safeguard(p, "--precision", "bfloat16"), ("pure bfloat16", "weak attack", "--precision lean")
    ),
    "a precision by its former name": (lambda p: attack(p, "--dtype", "float32"), ("--dtype is now called --precision",)),
    "no device at all": (lambda p: safeguard(p, "--device", "cuda"), ("'cuda'", "--device cpu")),
    "a hub id out of reach": (
        lambda p: [word if word != str(p.model) else "nobody/nothing" for word in evaluate(p)],
        ("nobody/nothing", "within reach"),
    ),
    "a hub id out of reach, to attack": (
        lambda p: [word if word != str(p.model) else "nobody/nothing" for word in attack(p)],
        ("nobody/nothing", "within reach"),
    ),
    "a control that is not there": (
        lambda p: audit(p, undefended=p.folder / "gone"), ("there is no model folder", "/gone;")
    ),
    "two models of one name": (
        lambda p: audit(p, "--reference", str(p.model)), ("one name", "rename a folder"),
    ),
    "a world too large": (lambda p: ["testbed", str(p.out), "--benign", "9000"], ("names", "fewer benign entities")),
    "the output that is the input": (
        lambda p: [*safeguard(p)[:-4], "--out", str(p.model)], ("is also an input", "--out")
    ),
    "the output that is the domain": (lambda p: [*attack(p), "--out", str(p.domain)], ("is also an input",)),
    "a report of nothing": (
        lambda p: ["report", str(p.domain), "--out", str(p.out / "r.html")], ("holds no audit", "campaign.json")
    ),
    "a report of a folder that is not there": (
        lambda p: ["report", str(p.out), "--out", str(p.folder / "r.html")], ("/out holds no audit",)
    ),
    "a report of another kind": (lambda p: ["report", str(p.out), "--out", "r.pdf"], ("r.pdf", "ends in .html")),
    "scores where a folder is": (lambda p: evaluate(p, "--out", str(p.domain)), ("/domain is a folder", "--out")),
    "a testbed where something else is": (lambda p: ["testbed", str(p.model)], ("already holds something else",)),
}  # fmt: skip


@pytest.mark.situation("hostile input", "the words of a command")
@pytest.mark.parametrize("what", WORDS)
def test_words_that_make_no_sense(what: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = WORDS[what]
    sentence = sentence_of(place, capsys, words(place))
    assert all(held in sentence for held in said), sentence


SETTINGS: dict[str, tuple[str, ...]] = {
    "random-mapping": (
        "outer_steps=0", "forget_batch_size=0", "retain_batch_size=-2", "micro_batch=0", "learning_rate=-1",
        "weight_decay=-1", "forget_weight=-1",
    ),
    "tar": (
        "outer_steps=0", "inner_steps=0", "every=0", "every=99", "adversaries_per_step=0",
        "tamper_resistance_batch_size=0", "retain_batch_size=0", "micro_batch=0", "outer_learning_rate=0",
        "tamper_resistance_weight=-1", "retain_weight=-1", "outer_warmup_steps=-1", "outer_weight_decay=-1",
    ),
    "full-adamw-1e-3": (
        "max_steps=0", "batch_size=0", "benign_share=2", "benign_first=-1", "benign_flip=1.1", "learning_rate=-1",
        "weight_decay=-1", "max_grad_norm=-1", "restart_every=0", "lora_rank=-1", "lora_alpha=0", "lora_dropout=1",
        "warmup_steps=8", "warmup_steps=-1",
    ),
}  # fmt: skip


@pytest.mark.situation("hostile input", "a setting")
@pytest.mark.parametrize(
    ("preset", "setting"), [(preset, setting) for preset, settings in SETTINGS.items() for setting in settings]
)
def test_a_setting_out_of_range(preset: str, setting: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    verb = attack(place, preset=preset) if preset.startswith("full") else safeguard(place)
    words = [word.replace("random-mapping", preset) for word in verb]
    sentence = sentence_of(place, capsys, [*words, "--set", f"{preset}.{setting}"])
    named = {"inner_steps": "inner_steps (0)"}
    field = setting.partition("=")[0]
    assert named.get(field, field) in sentence
    assert re.search("must|needs|use ", sentence), sentence


@pytest.mark.situation("hostile input", "the words of a command")
@pytest.mark.parametrize("device", ["cuda:3", "cuda:x", "cudas"])
def test_one_device_of_which_there_are_fewer(
    device: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    sentence = sentence_of(place, capsys, evaluate(place, "--device", device))
    assert f"no device '{device}' here" in sentence
    assert sentence.endswith("give --device cpu or cuda:0")


@pytest.mark.situation("hostile input", "a domain")
def test_a_package_that_is_missing(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    place.toml('file = "data/forget.jsonl"', 'dataset = "nobody/nothing"')
    sentence = sentence_of(place, capsys, safeguard(place))
    assert "[data.forget]" in sentence
    assert "pip install 'holdfast[datasets]'" in sentence


@pytest.mark.situation("hostile input", "a place for the output")
@pytest.mark.parametrize("command", [safeguard, attack, audit], ids=lambda command: command.__name__)
@pytest.mark.parametrize("what", ["something else", "a file", "closed"])
def test_a_place_that_cannot_take_the_output(
    what: str, command: Command, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = command(place)
    if command is audit:
        shutil.copytree(place.model, place.folder / "other")
        arguments = audit(place, model=place.folder / "other")
    if what == "something else":
        place.out.mkdir()
        (place.out / "precious.txt").write_text("precious")
        said = "already holds something else"
    elif what == "a file":
        place.out.write_text("precious")
        said = "is a file"
    else:
        # Not by permissions alone: the superuser, who runs tests in containers, may write everywhere.
        allowed = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: allowed(path, mode) and Path(path) != place.folder)
        said = "cannot be written"
    assert said in sentence_of(place, capsys, arguments)


@pytest.mark.situation("hostile input", "a place for the output")
@pytest.mark.parametrize("command", [attack, audit], ids=lambda command: command.__name__)
def test_the_run_of_another_command(command: Command, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Its plan would be overwritten, and its report with it."""
    CampaignPlan(title="Audit of another", domain="d", suite="s", models={}, cells=[]).write(place.out)
    shutil.copytree(place.model, place.folder / "other")
    arguments = audit(place, undefended=place.folder / "other") if command is audit else attack(place)
    sentence = sentence_of(place, capsys, arguments)
    assert f"{place.out} holds another run, 'Audit of another'" in sentence
    assert "--out" in sentence


@pytest.mark.situation("damaged file", "a folder that a run works in")
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"seed": "one"}'])
def test_a_damaged_marker(content: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.out.mkdir()
    (place.out / "run.json").write_text(content)
    sentence = sentence_of(place, capsys, ["demo", "--out", str(place.out)])
    assert "run.json is damaged" in sentence
    assert "--out" in sentence
    (place.out / "run.json").rename(place.out / "testbed.json")
    assert "already holds something else" in sentence_of(place, capsys, ["testbed", str(place.out)])


@pytest.mark.situation("hostile input", "a place for the output")
def test_the_run_of_another_seed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.out.mkdir()
    (place.out / "run.json").write_text('{"what": "demo", "settings": {"seed": 7}}\n')
    sentence = sentence_of(place, capsys, ["demo", "--out", str(place.out), "--seed", "0"])
    assert "seed 7" in sentence
    assert "--out" in sentence


@pytest.mark.situation("hostile input", "a place for the output")
def test_the_search_of_another_model(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trials would stand beside those of this model."""
    Standing(what="search", settings={"model": "another", "domain": "d"}).write(place.out)
    (place.out / "trials").mkdir()
    (place.out / "trials" / "of-another.json").write_text("{}")
    shutil.copytree(place.model, place.folder / "other")
    common = ["--model", str(place.model), "--domain", str(place.domain), "--out", str(place.out)]
    sentence = sentence_of(place, capsys, ["search", *common, "--undefended", str(place.folder / "other")])
    assert f"{place.out} holds the search (model another, domain d); give another --out" in sentence


@pytest.mark.situation("damaged file", "a model's folder")
def test_a_base_that_has_gone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(safeguard(place)) == 0
    shutil.copytree(place.out, place.folder / "shallow")
    shutil.rmtree(place.out)
    place.weights(lambda held: held["lm_head.weight"].mul_(2))
    arguments = [word if word != str(place.model) else str(place.folder / "shallow") for word in safeguard(place)]
    sentence = sentence_of(place, capsys, arguments)
    assert "gone or changed" in sentence
    assert "--base" in sentence


@pytest.mark.situation("hostile input", "a setting")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            lambda p: safeguard(p, "--set", "random-mapping.learning_rate=1e9", "--set", "random-mapping.outer_steps=9"),
            "the mapping loss became nan at step 2",
        ),
        (
            lambda p: [
                *safeguard(p)[:1], "tar", *safeguard(p)[2:-2], "--set", "tar.outer_learning_rate=1e12",
                "--set", "tar.outer_steps=9", "--set", "tar.inner_steps=4", "--set", "tar.outer_warmup_steps=1",
            ],
            "the tamper-resistance loss became nan at step 2",
        ),
        (
            lambda p: safeguard(p, "--set", "random-mapping.learning_rate=1e39", "--set", "random-mapping.outer_steps=1"),
            "not finite (model.embed_tokens.weight)",
        ),
    ],
    ids=["random-mapping", "tar", "in the last step"],
)  # fmt: skip
def test_divergence_stops_a_safeguard(
    command: Command, said: str, place: Place, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = sorted((cache / "stages").glob("*"))
    sentence = sentence_of(place, capsys, command(place))
    assert said in sentence
    assert "learning rate" in sentence
    assert sorted((cache / "stages").glob("*")) == trained


def test_damaged_and_newer_records(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    cell = CellResult(
        cell="c0", model="m", model_digest="d", attack="none", attack_config={}, seed=0, status="finished"
    )  # fmt: skip
    cell.write(place.out / "cells" / "c0.jsonl")
    CampaignPlan(title="t", domain="d", suite="s", models={"m": "defended"}, cells=["c0"]).write(place.out)
    report = ["report", str(place.out), "--out", str(place.folder / "r.html")]
    path = place.out / "cells" / "c0.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2])
    assert "not a holdfast record file" in sentence_of(place, capsys, report)
    path.write_text(text.replace(f'"schema": {SCHEMA}', '"schema": 99'))
    assert "schema 99" in sentence_of(place, capsys, report)
    path.write_text(text.replace('"seconds": 0.0', '"seconds": NaN'))
    assert "NaN" in sentence_of(place, capsys, report)
    path.write_text(text)
    sentence = sentence_of(place, capsys, [*report[:-1], str(place.out / "campaign.html")])
    assert "campaign.json is there already and is no earlier result" in sentence
    path.unlink()
    assert "has ended yet" in sentence_of(place, capsys, report)
    (place.out / "campaign.json").write_text("{")
    assert "campaign.json cannot be read" in sentence_of(place, capsys, report)


FULL: dict[str, tuple[str, Callable[[str], Exception]]] = {
    "full": ("tokenizer.json", lambda path: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)),
    "quota": ("tokenizer.json", lambda path: OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), path)),
    # As safetensors and tokenizers say it, whose errors are no OSError.
    "full for the weights": (
        "model.safetensors",
        lambda path: SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ),
    "full for the tokenizer": ("tokenizer.json", lambda path: Exception("No space left on device (os error 28)")),
}


@pytest.mark.situation("interruption", "a full disk")
@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(
    what: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the middle of writing the checkpoint: nothing half-written stays, and the next run succeeds."""
    name, raised = FULL[what]

    def full(self: Any, folder: Path, **kwargs: Any) -> None:
        (Path(folder) / name).write_text("half of i")
        raise raised(str(folder))

    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    writer = PreTrainedModel if name == "model.safetensors" else PreTrainedTokenizerBase
    with monkeypatch.context() as patch:
        patch.setattr(writer, "save_pretrained", full)
        sentence = sentence_of(place, capsys, safeguard(place))
    assert f"the disk is full ({tmp_path / 'cache'}" in sentence
    assert "run the same command again" in sentence
    assert main(safeguard(place)) == 0


@pytest.mark.situation("interruption", "a full disk")
def test_a_disk_that_is_full_for_the_copy(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is in the cache and does not fit where it was to go."""

    def full(source: Path, target: Path) -> None:
        Path(target).write_text("half of i")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        sentence = sentence_of(place, capsys, safeguard(place))
    assert f"the disk is full ({place.folder}/" in sentence
    assert main(safeguard(place)) == 0


@pytest.mark.situation("interruption", "a full disk")
@pytest.mark.parametrize("what", ["plan", "record", "scores"])
def test_a_disk_that_is_full_for_what_was_measured(
    what: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is there whole or not at all, and the next run goes on."""
    arguments = attack(place, "--set", "full-adamw-1e-3.max_steps=2")
    if what == "scores":
        arguments = evaluate(place, "--out", str(place.out / "scores.json"))
    name = {"plan": "campaign.json", "record": ".jsonl", "scores": "scores.json"}[what]
    written = Path.write_text

    def full(self: Path, text: str, **kwargs: Any) -> int:
        if name not in self.name:
            return written(self, text, **kwargs)
        written(self, text[: len(text) // 2], **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        sentence = sentence_of(place, capsys, arguments, keep_partial=True)
    assert re.search(rf"the disk is full \({place.out}/.*{name}\)", sentence), sentence
    assert {path.name for path in place.out.rglob("*") if path.is_file()} == (
        {"campaign.json"} if what == "record" else set()
    )
    assert main(arguments) == 0


@pytest.mark.situation("interruption", "what vanishes while a run goes on")
@pytest.mark.parametrize(
    "what", ["domain/data/attack.jsonl", "domain/questions/hazard.jsonl", "model/model.safetensors"]
)
def test_what_vanishes_while_an_attack_runs(
    what: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that goes away after everything was checked, and comes back."""
    arguments = attack(place, "--set", "full-adamw-1e-3.max_steps=2")
    path, away = place.folder / what, place.folder / "away"

    def vanishing(*jobs: Any) -> Any:
        path.rename(away)
        try:
            return run_here(*jobs)
        finally:
            away.rename(path)

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.campaign.run.run_jobs", vanishing)
        sentence = sentence_of(place, capsys, arguments, keep_partial=True)
    assert path.name in sentence or path.parent.name in sentence, sentence
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    assert main(arguments) == 0


@pytest.mark.situation("hostile input", "a place for the output")
def test_a_folder_that_turns_out_to_be_closed(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(place.out))

    monkeypatch.setattr("holdfast.runs.stages.atomic_folder", closed)
    sentence = sentence_of(place, capsys, safeguard(place, "--seed", "17"))
    assert "Permission denied" in sentence
    assert str(place.out) in sentence


@pytest.mark.situation("hostile input", "a tokenizer")
def test_a_prompt_that_shares_no_token_with_its_options(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer without a start token, and an option that merges with the whole of its prompt."""
    place.tokenizer()
    path = place.model / "tokenizer.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["post_processor"] = None
    table["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    table["model"]["vocab"].update({"a": 4, "ab": 5, "ac": 6})
    path.write_text(json.dumps(table), encoding="utf-8")
    place.question(prompt="a", choices=["b", "c"], answer=0)
    sentence = sentence_of(place, capsys, evaluate(place))
    assert "shares no first token" in sentence


@pytest.mark.situation("hostile input", "a model's folder")
def test_a_model_without_keys_and_values_is_measured(place: Place) -> None:
    config = MambaConfig(vocab_size=255, hidden_size=16, num_hidden_layers=1, state_size=4)
    replaced(place, MambaForCausalLM(config))
    assert main(evaluate(place)) == 0


@pytest.mark.situation("hostile input", "a tokenizer")
@pytest.mark.parametrize(
    "what",
    [
        *(pytest.param(what, marks=pytest.mark.slow) for what in ("no padding token", "no start and no end token")),
        "none of the three",
    ],
)
def test_a_tokenizer_without_special_tokens_is_no_obstacle(
    what: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.model / "tokenizer_config.json"
    held = json.loads(path.read_text(encoding="utf-8"))
    gone = {"no padding token": ("pad_token",), "no start and no end token": ("bos_token", "eos_token")}
    for name in gone.get(what, ("pad_token", "bos_token", "eos_token")):
        held.pop(name)
    path.write_text(json.dumps(held), encoding="utf-8")
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    assert main(safeguard(place)) == 0
    assert main(evaluate(place)) == 0
    shutil.rmtree(place.out)
    assert main(attack(place, "--set", "full-adamw-1e-3.max_steps=2")) == 0


@pytest.mark.situation("hostile input", "a model's folder")
def test_more_tokens_to_a_row_than_the_model_was_made_for_are_no_obstacle(place: Place) -> None:
    """Where positions are rotary."""
    config(max_position_embeddings=8)(place)
    assert main(safeguard(place)) == 0
    assert main(evaluate(place)) == 0


@pytest.mark.situation("hostile input", "a domain")
def test_a_byte_order_mark_is_no_obstacle(place: Place) -> None:
    for path in (place.domain / "domain.toml", place.domain / "data" / "forget.jsonl"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert main(safeguard(place)) == 0


@pytest.mark.situation("hostile input", "the words of a command")
@pytest.mark.parametrize(
    "words", [["audit", "--modle", "m"], ["demo", "--seed", str(2**64)], ["demo", "--workers", "0"], ["auditt"]]
)
def test_words_that_do_not_parse_are_the_parsers_matter(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert words[-2 if len(words) > 1 else 0] in printed.err
    assert "Traceback" not in printed.err
