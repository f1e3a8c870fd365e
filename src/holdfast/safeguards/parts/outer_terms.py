"""The terms of the outer loss: tamper-resistance losses, and the weights of the inner steps at which they are taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from holdfast.safeguards.parts.pairs import PairBatch, dpo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch

TamperResistance = Literal["entropy", "cross-entropy", "clamped-cross-entropy", "inverse-cross-entropy", "dpo"]


def tamper_resistance_loss(
    kind: TamperResistance, model: PreTrainedModel, part: Batch | PairBatch, dpo_beta: float
) -> torch.Tensor:
    """L_TR of a microbatch of x_tr at the attacked weights; a scalar that adds up over microbatches and ranks.

    `entropy` is the negative mean entropy of the next token, `cross-entropy` the negated LM loss, `clamped-cross-entropy` the
    same with every token's loss at most log V, `inverse-cross-entropy` -log(1 - p), and `dpo` the preference loss of a batch
    of pairs.
    """
    from holdfast.engine.losses import clamped_cross_entropy, inverse_cross_entropy, negative_entropy, next_token_loss
    from holdfast.engine.predictions import predictions

    if isinstance(part, PairBatch):
        return dpo(model, part, dpo_beta)
    logits = predictions(model, part.input_ids)
    if kind == "cross-entropy":
        return -next_token_loss(logits, part.labels, part.label_count)
    if kind == "clamped-cross-entropy":
        return -clamped_cross_entropy(logits, part.labels, part.label_count)
    if kind == "inverse-cross-entropy":
        return inverse_cross_entropy(logits, part.labels, part.label_count)
    return negative_entropy(logits, part.labels, part.label_count)


def step_weights(inner_steps: int, every: int, rate: float, normalise: bool) -> dict[int, float]:
    """Inner step k -> its weight w_k = exp(rate (k - K)), for every `every`-th k from 1 to K; `normalise` makes the sum 1."""
    weights = {k: math.exp(rate * (k - inner_steps)) for k in range(every, inner_steps + 1, every)}
    total = sum(weights.values()) if normalise else 1.0
    return {k: weight / total for k, weight in weights.items()}
