"""Algorithm 1 of arXiv 2408.00761, transcribed plainly: deep copies, one device, no tricks. Parity is held against this."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from holdfast.engine.data import Batch


@dataclass(frozen=True)
class OuterStep:
    """What one outer step reads: for each adversary its rate, its K batches and its held-out batch; a retain batch."""

    adversaries: Sequence[tuple[float, Sequence[Batch], Batch]]
    retain: Batch


def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    target = batch.labels[:, 1:]
    kept = target != -100
    return F.cross_entropy(logits[:, :-1][kept].float(), target[kept], reduction="sum") / int(kept.sum())


def tamper_resistance_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    kept = batch.labels[:, 1:] != -100
    log_p = F.log_softmax(model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1][kept].float(), dim=-1)
    return (log_p.exp() * log_p).sum() / int(kept.sum())


def retain_loss(model: PreTrainedModel, base: PreTrainedModel, batch: Batch) -> torch.Tensor:
    output = model(input_ids=batch.input_ids, output_hidden_states=True, use_cache=False)
    with torch.no_grad():
        original = base(input_ids=batch.input_ids, output_hidden_states=True, use_cache=False).hidden_states
    pairs = list(zip(output.hidden_states, original, strict=True))
    norms = torch.stack([(here - there)[batch.mask].float().square().sum(-1).sqrt().sum() for here, there in pairs])
    return cross_entropy(output.logits, batch) + norms.sum() / (len(pairs) * int(batch.mask.sum()))


def outer_gradient(
    model: PreTrainedModel, base: PreTrainedModel, read: OuterStep, *, inner_weight_decay: float,
    every: int, rate: float, tamper_weight: float, retain_weight: float,
) -> list[torch.Tensor]:  # fmt: skip
    """The gradient of one outer step by the model's trainable weights, in their order."""
    total = [torch.zeros_like(p) for p in trainable(model)]
    for learning_rate, batches, x_tr in read.adversaries:
        attacked = copy.deepcopy(model)
        inner = torch.optim.AdamW(trainable(attacked), learning_rate, weight_decay=inner_weight_decay, fused=True)
        for k, batch in enumerate(batches, start=1):
            inner.zero_grad()
            cross_entropy(attacked(input_ids=batch.input_ids, use_cache=False).logits, batch).backward()
            inner.step()
            if k % every == 0:
                weight = tamper_weight * math.exp(rate * (k - len(batches))) / len(read.adversaries)
                gradients = torch.autograd.grad(tamper_resistance_loss(attacked, x_tr), trainable(attacked))
                for held, gradient in zip(total, gradients, strict=True):
                    held.add_(gradient, alpha=weight)
    gradients = torch.autograd.grad(retain_loss(model, base, read.retain), trainable(model))
    for held, gradient in zip(total, gradients, strict=True):
        held.add_(gradient, alpha=retain_weight)
    return total


def tar(
    model: PreTrainedModel, base: PreTrainedModel, steps: Sequence[OuterStep], *, inner_weight_decay: float,
    outer_learning_rate: float, outer_warmup: int, every: int, rate: float, tamper_weight: float, retain_weight: float,
) -> None:  # fmt: skip
    outer = torch.optim.AdamW(trainable(model), outer_learning_rate, weight_decay=0.0, fused=True)
    for n, read in enumerate(steps):
        total = outer_gradient(
            model, base, read, inner_weight_decay=inner_weight_decay,
            every=every, rate=rate, tamper_weight=tamper_weight, retain_weight=retain_weight,
        )  # fmt: skip
        for parameter, gradient in zip(trainable(model), total, strict=True):
            parameter.grad = gradient
        outer.param_groups[0]["lr"] = outer_learning_rate * min(1.0, (n + 1) / outer_warmup)
        outer.step()


def trainable(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
