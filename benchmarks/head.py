"""What a loss over a large vocabulary takes: whole logits against logits in parts.

    .venv/bin/python -m benchmarks.head

The model is random: two layers of width 256 and 131,072 words, whose embedding is the head too. A pass reads 5 rows of 256
tokens, forward and backward. Each line is a process of its own. Memory is the peak of the resident set over what stood before the
pass, with the gradients of all weights in it. Time is that of the processor. `difference` is how far the norms of the gradients
lie apart, as a share.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

WORDS, WIDTH, ROWS, LENGTH = 131_072, 256, 5, 256
NAMES = ("next-token loss", "entropy", "log-probability of rows", "KL to a teacher")


def main() -> None:
    print("| loss | logits | memory, MB | seconds | difference |\n|---|---|---|---|---|")
    for name in NAMES:
        whole, parts = (measured(name, where) for where in ("whole", "in parts"))
        gap = abs(whole["norm"] - parts["norm"]) / whole["norm"]
        for where, here, apart in (("whole", whole, ""), ("in parts", parts, f"{gap:.0e}")):
            print(f"| {name} | {where} | {here['memory'] / 1e6:.0f} | {here['seconds']:.1f} | {apart} |", flush=True)


def measured(name: str, where: str) -> dict[str, Any]:
    """One line, from a process of its own."""
    run = [sys.executable, "-m", "benchmarks.head", name, where]
    found: dict[str, Any] = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return found


def one(name: str, where: str) -> dict[str, float]:
    """The memory and time of a loss, and the norm of its gradient."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from holdfast.engine import predictions as engine
    from holdfast.engine.costs import Memory, gradient_norm

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if where == "whole":
        engine.LOGITS_AT_ONCE = 2**62
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    engine.predictions(model, torch.zeros(1, 2, dtype=torch.long))  # libraries are loaded
    engine.body_of(model)  # the end is tried
    ids = torch.randint(WORDS, (ROWS, LENGTH))
    loss, memory = losses(ids)[name], Memory("cpu")
    before, begun = memory.peak() or 0, time.process_time()
    loss(model).backward()  # type: ignore[no-untyped-call]
    seconds, peak = time.process_time() - begun, memory.peak() or 0
    return {"memory": peak - before, "seconds": seconds, "norm": gradient_norm(model) or 0.0}


def losses(ids: torch.Tensor) -> dict[str, Callable[[Any], torch.Tensor]]:
    """The losses by name, as functions of the model."""
    from holdfast.engine.losses import (
        completion_log_probability,
        distillation_loss,
        negative_entropy,
        next_token_loss,
    )
    from holdfast.engine.predictions import predictions

    def divergence(model: Any) -> torch.Tensor:
        with torch.no_grad():
            teacher = predictions(model, ids.flip(0))
        return distillation_loss(predictions(model, ids), teacher, torch.ones_like(ids).bool(), float(ids.numel()))

    of_logits = (
        lambda model: next_token_loss(predictions(model, ids), ids, float(ids.numel())),
        lambda model: negative_entropy(predictions(model, ids), ids, float(ids.numel())),
        lambda model: completion_log_probability(predictions(model, ids), ids).sum() / ids.numel(),
        divergence,
    )
    return dict(zip(NAMES, of_logits, strict=True))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(*sys.argv[1:])))
    else:
        main()
