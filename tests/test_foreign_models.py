"""Models and data that were made without holdfast go the whole way: safeguard, attack, audit, report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from holdfast.cli.app import main
from holdfast.core.records import read_campaign
from holdfast.engine.checkpoint import Checkpoint
from holdfast.runs.suites import SUITES
from tests.cli.test_cli import run_here

THINGS = ("lantern", "harbour", "quarry", "orchard", "windmill", "foundry", "granary", "causeway")
COLOURS = ("amber", "crimson", "olive", "violet")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Foreign:
    model: Path
    domain: Path


def sentences() -> list[str]:
    return [f"The colour of the {thing} is {COLOURS[i % 4]}." for i, thing in enumerate(THINGS)]


def tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges little, so that an answer has several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        sentences(), trainers.BpeTrainer(vocab_size=270, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def domain(folder: Path, *, chat: bool) -> Path:
    """Plain JSONL, written by hand: rows of text, and of messages or of preferences in one role each."""
    text = [{"text": sentence} for sentence in sentences()]
    talk = [
        {"messages": [{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": sentence}]}
        for sentence in sentences()
    ]
    preferred = [
        {"prompt": f"Colour of the {thing}?", "chosen": " I will not say.", "rejected": f" {COLOURS[i % 4]}"}
        for i, thing in enumerate(THINGS)
    ]
    asked = [
        {"prompt": f"The colour of the {thing} is", "choices": [f" {colour}" for colour in COLOURS], "answer": i % 4}
        for i, thing in enumerate(THINGS)
    ]
    data = {
        "forget": talk if chat else text,
        "forget_heldout": text,
        "retain": text,
        "attack": text if chat else preferred,
        "attack_ood": text,
        "attack_all": text,
        "benign": talk if chat else text,
    }
    toml = ["schema = 1", "max_length = 40"]
    for role, rows in data.items():
        lines(folder / "data" / f"{role}.jsonl", rows)
        toml += [f"[data.{role}]", f'file = "data/{role}.jsonl"']
    for name in ("hazard", "benign_outside_retain"):
        lines(folder / "questions" / f"{name}.jsonl", asked)
        toml += [f"[questions.{name}]", f'file = "questions/{name}.jsonl"']
    (folder / "domain.toml").write_text("\n".join(toml) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    """Tied embeddings, a chat template, and no start token."""
    folder = tmp_path_factory.mktemp("qwen")
    words = tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    words.chat_template = CHAT
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words) + 13, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    save(Qwen3ForCausalLM(config), words, folder / "model")
    return Foreign(folder / "model", domain(folder / "domain", chat=True))


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    """Parallel residuals, dropout, biases, one token for start and end, and none for padding."""
    folder = tmp_path_factory.mktemp("neox")
    words = tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, hidden_dropout=0.1, attention_dropout=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    save(GPTNeoXForCausalLM(config), words, folder / "model")
    return Foreign(folder / "model", domain(folder / "domain", chat=False))


def save(model: PreTrainedModel, words: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def run(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("made", ["qwen", pytest.param("neox", marks=pytest.mark.slow)])
def test_the_whole_way(
    made: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    foreign: Foreign = request.getfixturevalue(made)
    shallow, tar, common = tmp_path / "shallow", tmp_path / "tar", ("--domain", foreign.domain)
    short = ("--set", "random-mapping.outer_steps=3")
    run("safeguard", "random-mapping", "--model", foreign.model, *common, "--out", shallow, *short)
    run(
        "safeguard", "random-mapping", "tar", "--model", foreign.model, *common, "--out", tar, *short,
        "--set", "tar.outer_steps=2", "--set", "tar.inner_steps=4", "--set", "tar.micro_batch=5",
    )  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(tar)
    words = AutoTokenizer.from_pretrained(tar)
    ids = torch.tensor([words("The colour of the lantern is amber.")["input_ids"]])
    ours = Checkpoint(str(tar)).load()
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)
    assert type(loaded) is type(Checkpoint(str(foreign.model)).load())
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == loaded.config.tie_word_embeddings

    few = ("--set", "lora-r4-adamw-5e-3.max_steps=4")
    run("attack", "lora-r4-adamw-5e-3", "--model", tar, *common, "--out", tmp_path / "attack", *few)
    steps = [text for name in SUITES["demo-2"].attacks for text in ("--set", f"{name}.max_steps=4")]
    run(
        "audit", "--model", tar, "--undefended", foreign.model, "--reference", shallow, *common, "--suite", "demo-2",
        "--seeds", "1", "--workers", "1", "--out", tmp_path / "audit", *steps,
    )  # fmt: skip
    for folder in ("attack", "audit"):
        plan, results = read_campaign(tmp_path / folder)
        assert len(results) == len(plan.cells)
        assert {result.status for result in results} == {"finished"}
        assert all(math.isfinite(record.value) for result in results for record in result.records)
        assert all(loss > 0 for result in results for _, loss in result.losses)
        assert (tmp_path / folder / "report.html").stat().st_size > 10_000
    assert not list(tmp_path.rglob("TAMPERED*"))


def test_an_answer_has_several_tokens(qwen: Foreign) -> None:
    """Else this file would test less than it says."""
    words = AutoTokenizer.from_pretrained(qwen.model)
    assert all(len(words(f" {colour}")["input_ids"]) > 1 for colour in COLOURS)
