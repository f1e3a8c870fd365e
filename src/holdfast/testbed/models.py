"""The testbed's tokenizer and its two models, trained from the seed: one on everything, one never exposed to the hazard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from holdfast.engine.data import Encoded, Stream
from holdfast.engine.losses import next_token_loss
from holdfast.engine.optimizers import make_optimizer, schedule_factor, set_learning_rate
from holdfast.engine.predictions import predictions
from holdfast.engine.run import Run
from holdfast.testbed.world import vocabulary

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The training that teaches a testbed model its world."""

    rows_per_step: int = 128
    """batch size"""
    passes: float = 16.0
    """times each row is seen; over-trained on purpose: a model that barely knows its facts falls to any fine-tuning"""
    learning_rate: float = 5e-3
    """peak learning rate"""
    warmup_steps: int = 40
    """steps of linear warmup, before the cosine"""
    weight_decay: float = 0.05
    """decoupled weight decay"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""

    def total_steps(self, rows: int) -> int:
        """Steps for a corpus of `rows`: in proportion, so every model sees each of its rows as often."""
        return round(self.passes * rows / self.rows_per_step)

    def steps(self, model: LlamaForCausalLM, rows: Sequence[Encoded], run: Run) -> Iterator[dict[str, float]]:
        """Train in place; yield the loss of each step. AdamW with betas (0.9, 0.98), cosine to zero."""
        stream = Stream(rows, self.rows_per_step, run.seed, pad=0)
        optimizer = make_optimizer(
            "adamw", model.parameters(), self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.98)
        )
        run.track(optimizer=optimizer, stream=stream)
        total = self.total_steps(len(rows))
        model.train()
        for step in range(run.start, total):
            set_learning_rate(
                optimizer, self.learning_rate * schedule_factor("warmup-cosine", step, total, self.warmup_steps)
            )
            batch = next(stream)
            loss = next_token_loss(predictions(model, batch.input_ids), batch.labels, batch.label_count)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
            optimizer.step()
            model.zero_grad(set_to_none=True)
            yield {"loss": loss.item()}
        model.train(False)


PRETRAINING = {"knowledge": Pretraining(), "refusal": Pretraining(passes=24.0)}
"""The pretraining for each kind of domain. Requests are judged by the whole answer, which a fine-tuned model loses sooner than
the likeliest of four choices. docs/testbed.md has what 12 and 24 passes keep under attack."""


def make_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of the vocabulary and of `more`, and a start token before every text."""
    tokens = dict.fromkeys((PAD, START, END, UNKNOWN, *vocabulary(), *more))
    words = {word: index for index, word in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, words[START])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained model of 0.38 million weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # Over a few tokens plain attention is faster on a CPU than the fused kernel.
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    return cast(LlamaForCausalLM, model)
