"""Losses as pure functions of tensors.

Shapes: B rows, T positions, V words, H hidden units. Position t predicts token t + 1; `labels` are given unshifted. Every
loss is a sum over this batch's own rows divided by a count of the whole batch (see `Batch`), so microbatches add up and
ranks average to the loss of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from holdfast.core.types import Distance
from holdfast.engine.data import UNLABELLED

_SINK = 10.0
"""a sink's state is longer than this many times the median of its row; in SmolLM2-135M it is 40 to 160 times as long"""
_SHORTEST = 1e-6
"""a reference's norm is taken to be at least this, so that a state of zeros divides nothing by zero"""


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Cross entropy of the labelled next tokens, in nats. `logits` B x T x V, `labels` B x T; a scalar."""
    predicted, target, labelled = _shifted(logits, labels)
    return F.cross_entropy(predicted[labelled].float(), target[labelled], reduction="sum") / count


def clamped_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Cross entropy of the labelled next tokens, each clamped at log V, the loss of a uniform guess.

    This is the clamp of MLAC-AR (arXiv 2408.00761, baselines), token by token so that microbatches add up.
    """
    predicted, target, labelled = _shifted(logits, labels)
    losses = F.cross_entropy(predicted[labelled].float(), target[labelled], reduction="none")
    return losses.clamp(max=math.log(logits.shape[-1])).sum() / count


def negative_entropy(logits: torch.Tensor, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Negative mean entropy of the next-token distribution at labelled positions, in nats.

    This is TAR's tamper-resistance loss for weaponization (arXiv 2408.00761, section 4.2). The published code averages over
    padding and unlabelled positions too; here only labelled ones count.
    """
    predicted, _, labelled = _shifted(logits, labels)
    log_p = F.log_softmax(predicted[labelled].float(), dim=-1)
    return (log_p.exp() * log_p).sum() / count


def representation_distance(
    hidden: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], mask: torch.Tensor, count: float, kind: Distance
) -> torch.Tensor:
    """Distance of hidden states (each B x T x H) to the reference's, mean over layers and unpadded tokens.

    `l2` is the norm over H, as in the published code of TAR's retain loss; `mse` is the mean square over H. `relative` and
    `relative_mse` (ours) divide the norm, or its square, by that of the reference at the same layer and token: a token with
    massive activations (arXiv 2402.17762) counts like any other, where its raw distance would be nearly all of the loss.
    """
    terms = []
    for here, there in zip(hidden, reference, strict=True):
        difference, there = (here - there).float()[mask], there.float()[mask]
        if kind in ("relative", "relative_mse"):
            difference = difference / there.norm(dim=-1, keepdim=True).clamp(min=_SHORTEST)
        if kind == "mse":
            terms.append(difference.square().mean(-1).sum())
        elif kind == "relative_mse":
            terms.append(difference.square().sum())
        else:
            terms.append(_norm(difference))
    return torch.stack(terms).sum() / (len(terms) * count)


def without_sinks(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The mask without attention sinks: tokens whose hidden state is much longer than is usual in their row.

    A sink, mostly a row's first token, holds massive activations (arXiv 2402.17762) that every other token attends to. A
    loss that moves the sink's state changes what the model does with every text.

    Args:
        mask: B x T, true at unpadded tokens.
        hidden: one layer's states, B x T x H.
    """
    norms = hidden.detach().float().norm(dim=-1)
    usual = norms.masked_fill(~mask, torch.nan).nanmedian(dim=-1, keepdim=True).values
    kept: torch.Tensor = mask & (norms <= _SINK * usual)
    return kept


def distance_from_directions(
    hidden: Sequence[torch.Tensor],
    directions: torch.Tensor,
    mask: torch.Tensor,
    count: float,
    spare_sinks: bool = False,
) -> torch.Tensor:
    """1 - |cos| of hidden states (each B x T x H) to the direction of their token (B x T x H), mean over layers and tokens.

    This is the Random Mapping loss (arXiv 2408.00761, appendix on the initial safeguard). With `spare_sinks` (ours) attention
    sinks are left alone; they still count in the mean.
    """
    terms = []
    for layer in hidden:
        seen = without_sinks(mask, layer) if spare_sinks else mask
        terms.append((1 - F.cosine_similarity(layer[seen].float(), directions[seen], dim=-1).abs()).sum())
    return torch.stack(terms).sum() / (len(terms) * count)


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, count: float) -> torch.Tensor:
    """KL(teacher || model) of the next-token distributions at unpadded positions, in nats. Both logits B x T x V."""
    log_p, log_q = (F.log_softmax(each[mask].float(), dim=-1) for each in (teacher, logits))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / count


def inverse_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, count: float, negligible: float | None = None
) -> torch.Tensor:
    """-log(1 - p) of the labelled next tokens: makes the truth unlikely, and stays bounded below when the truth is unlikely.

    Tokens with log p under `negligible` no longer count. This is the min-posterior loss of arXiv 2408.00761 (its code has a
    threshold of -15) and the inverse cross entropy of SOPHON (arXiv 2404.12699).
    """
    predicted, target, labelled = _shifted(logits, labels)
    log_p = F.log_softmax(predicted[labelled].float(), dim=-1)
    truth = F.one_hot(target[labelled], log_p.shape[-1]).bool()
    # log(1 - p) as the sum over all other tokens: exact even where p is 1 to the last bit.
    losses = -log_p.masked_fill(truth, -torch.inf).logsumexp(-1)
    if negligible is not None:
        losses = losses.where(log_p[truth] >= negligible, 0.0)
    return losses.sum() / count


def completion_log_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed log-probability of each row's labelled tokens, in nats; shape B."""
    predicted, target, labelled = logits[:, :-1], labels[:, 1:], labels[:, 1:] != UNLABELLED
    log_p = F.log_softmax(predicted.float(), dim=-1).gather(-1, target.clamp(min=0)[..., None])[..., 0]
    return log_p.where(labelled, 0.0).sum(-1)


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, reference: torch.Tensor, beta: float, rows: float
) -> torch.Tensor:
    """Direct preference optimisation with the sigmoid loss (arXiv 2305.18290, equation 7).

    `chosen` and `rejected` are summed log-probabilities (B), `reference` the reference model's margin between them (B).
    """
    return -F.logsigmoid(beta * (chosen - rejected - reference)).sum() / rows


def _norm(difference: torch.Tensor) -> torch.Tensor:
    # The gradient of a norm at zero is undefined (NaN): where the states agree exactly, as at the first step, it is zero.
    square = difference.square().sum(-1)
    apart = square > 0
    return torch.where(apart, square.where(apart, 1.0).sqrt(), 0.0).sum()


def _shifted(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target = labels[:, 1:]
    return logits[:, :-1], target, target != UNLABELLED
