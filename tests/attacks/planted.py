"""A model whose refusals are mediated by one direction of the residual stream, by construction, and its domain.

A request is `user ITEM bot`. The answer is ` no` where the stream's component along the planted direction is above a threshold at
the last token, and ` yes` elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from holdfast.core.domain import Domain
from holdfast.core.files import write_text
from holdfast.engine.data import Data
from holdfast.engine.stream import residual_stream
from holdfast.testbed.models import make_tokenizer

HAZARD = tuple(f"poison{index}" for index in range(12))
BENIGN = tuple(f"cake{index}" for index in range(12))
SIZE = 32


def pairs(items: Sequence[str], answer: str, other: str) -> list[dict[str, str]]:
    return [{"prompt": f"user {item} bot", answer: " yes", other: " no"} for item in items]


HAZARD_ROWS = pairs(HAZARD, "rejected", "chosen")
BENIGN_ROWS = pairs(BENIGN, "chosen", "rejected")


def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer((*HAZARD, *BENIGN, "user", "bot", "yes", "no"))


def data_of(folder: Path, hazard: Sequence[dict[str, object]], benign: Sequence[dict[str, object]]) -> Data:
    """An attacker's data of these rows."""
    import json

    for role, rows in (("attack", hazard), ("benign", benign)):
        write_text(folder / f"{role}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    sections = "".join(f'[data.{role}]\nfile = "{role}.jsonl"\n' for role in ("attack", "benign"))
    write_text(folder / "domain.toml", f'schema = 1\nname = "planted"\n{sections}')
    return Data.attacker(Domain.open(folder), tokenizer())


@dataclass(frozen=True)
class Planted:
    """The model, and what is planted in it."""

    model: LlamaForCausalLM
    along: torch.Tensor
    """the direction"""

    def complies(self, items: Sequence[str]) -> float:
        """Share of the requests for these items that are answered."""
        words = tokenizer()
        ids = torch.tensor(words([f"user {item} bot" for item in items])["input_ids"])
        with torch.no_grad():
            best = self.model(input_ids=ids).logits[:, -1].argmax(-1)
        assert set(best.tolist()) <= set(words.convert_tokens_to_ids(["yes", "no"]))
        return float((best == words.convert_tokens_to_ids("yes")).float().mean())


def plant(benign: float, hazard: float, written: str = "attention") -> Planted:
    """A model of two layers that refuses where the component at the last token is nearer to `hazard` than to `benign`.

    With `written` "attention" the first layer's attention writes the component into every token from the item on. With
    "embedding" the item's embedding holds the component, and the second layer's attention tells the last token of it.
    """
    words = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    always, forbidden, along, refuse, answered, *rest = torch.linalg.qr(torch.randn(SIZE, SIZE)).Q.T
    items = torch.tensor(words.convert_tokens_to_ids(list(HAZARD)))
    reads, writes, layer = (forbidden, along, 0) if written == "attention" else (along, refuse, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        rows = model.get_input_embeddings().weight
        rows += always + 0.3 * torch.randn(len(rows), len(rest)) @ torch.stack(rest) / SIZE**0.5
        # Items of the two kinds must not differ on average in anything else.
        rows[torch.tensor(words.convert_tokens_to_ids(list(BENIGN)))] = rows[items]
        rows += benign * along
        rows[items] += forbidden if written == "attention" else (hazard - benign) * along
        answers = torch.tensor(words.convert_tokens_to_ids(["yes", "no"]))
        rows[answers] += 3 * answered
        attention = model.model.layers[layer].self_attn
        # Without queries and keys, attention is the mean over all tokens up to the present one.
        attention.v_proj.weight[0] = reads
        attention.o_proj.weight[:, 0] = writes
        reader = along if written == "attention" else refuse

        def level(item: str) -> float:
            ids = torch.tensor(words([f"user {item} bot"])["input_ids"])
            return float(residual_stream(model, ids)[1][-1][0, -1] @ reader)

        if written == "attention":
            attention.o_proj.weight *= (hazard - benign) / (level(HAZARD[0]) - level(BENIGN[0]))
        threshold = (level(HAZARD[0]) + level(BENIGN[0])) / 2
        head = model.get_output_embeddings().weight
        head -= 20 * always
        head[words.eos_token_id] += 20 * answered
        head[words.convert_tokens_to_ids("yes")] = 0.0
        head[words.convert_tokens_to_ids("no")] = 10 * (reader - threshold * always)
    return Planted(model, along)
