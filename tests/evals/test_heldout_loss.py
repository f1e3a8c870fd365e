"""Loss on held-out rows, against a plain walk through them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from holdfast.core.domain import Domain
from holdfast.core.types import NonFinite, Score
from holdfast.evals.heldout_loss import HeldoutLoss
from tests.core.characters import CHAT, character_tokenizer

TOKENIZER = character_tokenizer(CHAT)

TEXTS = [{"text": text} for text in ("some words", "a", "a longer row of some more words", "two\nlines")]
PREFERENCES = [
    {"prompt": "ask: ", "chosen": "no", "rejected": "yes, gladly"},
    {"prompt": "and then? ", "chosen": "I will not say", "rejected": "so"},
]
CONVERSATION = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


def domain_of(
    folder: Path, rows: Sequence[Mapping[str, Any]], max_length: int = 99, role: str = "hazard_heldout"
) -> Domain:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toml = f'schema = 1\nmax_length = {max_length}\n[data.{role}]\nfile = "rows.jsonl"\n'
    (folder / "domain.toml").write_text(toml)
    return Domain.open(folder)


def measured(model: PreTrainedModel, domain: Domain, **changes: Any) -> Score:
    [score] = HeldoutLoss(**{"role": "hazard_heldout", **changes}).prepare(TOKENIZER, domain)(model)
    return score


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=104, **sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return made


def nats(model: PreTrainedModel, *pieces: str, max_length: int = 99) -> float:
    """Mean surprise of the tokens of every second piece, each token by a forward of all before it."""
    ids: list[int] = []
    surprises = []
    for place, piece in enumerate(pieces):
        for token in TOKENIZER(piece, add_special_tokens=False)["input_ids"]:
            if place % 2 and len(ids) < max_length:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
                surprises.append(-float(logits.log_softmax(-1)[token]))
            ids.append(token)
    return sum(surprises) / len(surprises)


def assert_mean(score: Score, by_row: Sequence[float]) -> None:
    mean = sum(by_row) / len(by_row)
    variance = sum((value - mean) ** 2 for value in by_row) / (len(by_row) - 1)
    assert (score.metric, score.n) == ("nats", len(by_row))
    assert score.value == pytest.approx(mean, rel=1e-5)
    assert score.stderr == pytest.approx((variance / len(by_row)) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_texts_cost_what_their_tokens_and_their_end_cost(
    batch_size: int, model: PreTrainedModel, tmp_path: Path
) -> None:
    by_row = [nats(model, "<s>", row["text"] + "</s>") for row in TEXTS]
    assert_mean(measured(model, domain_of(tmp_path, TEXTS), batch_size=batch_size), by_row)
    assert max(by_row) - min(by_row) > 0.1  # a mean over all tokens would be another number


@pytest.mark.parametrize(("role", "side"), [("hazard_heldout", "rejected"), ("benign_heldout", "chosen")])
def test_preferences_cost_what_their_role_s_side_costs(
    role: str, side: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    by_row = [nats(model, "<s>" + row["prompt"], row[side] + "</s>") for row in PREFERENCES]
    assert_mean(measured(model, domain_of(tmp_path, PREFERENCES, role=role), role=role), by_row)


def test_conversations_cost_what_the_assistant_says(model: PreTrainedModel, tmp_path: Path) -> None:
    whole = nats(model, "<user>hi</s><assistant>", "yes</s>", "<user>and</s><assistant>", "no</s>")
    start = nats(model, "<user>hi</s><assistant>", "yes</s>")
    domain = domain_of(tmp_path, [{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}])
    assert_mean(measured(model, domain), [whole, start])


def test_what_is_cut_costs_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    by_row = [nats(model, "<s>", row["text"] + "</s>", max_length=6) for row in TEXTS]
    assert_mean(measured(model, domain_of(tmp_path, TEXTS, max_length=6)), by_row)


@pytest.mark.parametrize("rows", [2, 4, 9])
def test_the_first_rows_are_taken(rows: int, model: PreTrainedModel, tmp_path: Path) -> None:
    by_row = [nats(model, "<s>", row["text"] + "</s>") for row in TEXTS[:rows]]
    assert_mean(measured(model, domain_of(tmp_path, TEXTS), rows=rows), by_row)


def test_a_single_row_has_no_standard_error(model: PreTrainedModel, tmp_path: Path) -> None:
    score = measured(model, domain_of(tmp_path, TEXTS[:1]))
    assert (score.n, score.stderr) == (1, None)


def test_one_row_that_is_not_finite_voids_the_mean(model: PreTrainedModel, tmp_path: Path) -> None:
    domain = domain_of(tmp_path, [*TEXTS, {"text": "a q"}])
    [rare] = TOKENIZER("q", add_special_tokens=False)["input_ids"]
    before = model.get_input_embeddings().weight[rare].detach().clone()
    try:
        with torch.no_grad():
            model.get_input_embeddings().weight[rare] = torch.nan
        assert measured(model, domain, rows=4).n == 4
        with pytest.raises(NonFinite, match="loss on held-out rows is not finite"):
            measured(model, domain)
    finally:
        with torch.no_grad():
            model.get_input_embeddings().weight[rare] = before


def test_a_hazard_s_loss_is_followed_only_where_there_are_no_questions_about_it(tmp_path: Path) -> None:
    domain = domain_of(tmp_path / "without", TEXTS)
    hazard, benign = HeldoutLoss(role="hazard_heldout"), HeldoutLoss(role="benign_heldout")
    assert (hazard.measures(domain), benign.measures(domain)) == ("hazard", "ability")
    assert hazard.at_milestone(domain) == hazard
    assert benign.at_milestone(domain) is None
    domain_of(tmp_path / "with", TEXTS)
    with (tmp_path / "with" / "domain.toml").open("a") as toml:
        toml.write('[questions.hazard]\nfile = "hazard.jsonl"\n')
    assert hazard.at_milestone(Domain.open(tmp_path / "with")) is None


def test_a_row_that_was_cut_down_to_its_prompt_is_left_out_of_the_mean(model: PreTrainedModel, tmp_path: Path) -> None:
    long = {"prompt": "ask" * 30, "chosen": "no", "rejected": "yes"}
    kept = [PREFERENCES[0]] * 19
    alone = measured(model, domain_of(tmp_path / "kept", kept, max_length=40))
    score = measured(model, domain_of(tmp_path / "all", [long, *kept], max_length=40))
    assert (score.n, score.value) == (19, pytest.approx(alone.value))
