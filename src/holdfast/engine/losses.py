"""Losses as pure functions of tensors.

Shapes: B rows, T positions, V words, H hidden units. Position t predicts token t + 1; `labels` are given unshifted. Every
loss is a sum over this batch's own rows divided by a count of the whole batch (see `Batch`), so microbatches add up and
ranks average to the loss of the whole. Logits may be deferred (`engine.predictions`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from holdfast.core.types import Distance
from holdfast.engine.data import UNLABELLED
from holdfast.engine.predictions import Deferred, Logits, over_tokens
from holdfast.engine.rounding import wide

_SINK = 10.0
"""a sink's state is longer than this many times the median of its row; in SmolLM2-135M it is 40 to 160 times as long"""
_SHORTEST = 1e-6
"""a reference's norm is taken to be at least this, so that a state of zeros divides nothing by zero"""


def next_token_loss(logits: Logits, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Cross entropy of the labelled next tokens, in nats. `logits` B x T x V, `labels` B x T; a scalar."""

    def loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(predicted, target, reduction="sum")

    return _sum(loss, logits, labels) / count


def clamped_cross_entropy(logits: Logits, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Cross entropy of the labelled next tokens, each clamped at log V, the loss of a uniform guess.

    This is the clamp of MLAC-AR (arXiv 2408.00761, baselines), token by token so that microbatches add up.
    """

    def loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(predicted, target, reduction="none")
        return losses.clamp(max=math.log(predicted.shape[-1])).sum()

    return _sum(loss, logits, labels) / count


def negative_entropy(logits: Logits, labels: torch.Tensor, count: float) -> torch.Tensor:
    """Negative mean entropy of the next-token distribution at labelled positions, in nats.

    This is TAR's tamper-resistance loss for weaponization (arXiv 2408.00761, section 4.2). The published code averages over
    padding and unlabelled positions too; here only labelled ones count.
    """

    def loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_p = F.log_softmax(predicted, dim=-1)
        return (log_p.exp() * log_p).sum()

    return _sum(loss, logits, labels) / count


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


def distillation_loss(logits: Logits, teacher: Logits, mask: torch.Tensor, count: float) -> torch.Tensor:
    """KL(teacher || model) of the next-token distributions at unpadded positions, in nats. Both logits B x T x V."""

    def loss(*both: torch.Tensor) -> torch.Tensor:
        log_p, log_q = (F.log_softmax(each, dim=-1) for each in both)
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    return _added(over_tokens(loss, (teacher, logits), mask)) / count


def inverse_cross_entropy(
    logits: Logits, labels: torch.Tensor, count: float, negligible: float | None = None
) -> torch.Tensor:
    """-log(1 - p) of the labelled next tokens: makes the truth unlikely, and stays bounded below when the truth is unlikely.

    Tokens with log p under `negligible` no longer count. This is the min-posterior loss of arXiv 2408.00761 (its code has a
    threshold of -15) and the inverse cross entropy of SOPHON (arXiv 2404.12699).
    """

    def loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_p = F.log_softmax(predicted, dim=-1)
        truth = F.one_hot(target, log_p.shape[-1]).bool()
        # log(1 - p) as the sum over all other tokens: exact even where p is 1 to the last bit.
        losses = -log_p.masked_fill(truth, -torch.inf).logsumexp(-1)
        if negligible is not None:
            losses = losses.where(log_p[truth] >= negligible, 0.0)
        return losses.sum()

    return _sum(loss, logits, labels) / count


def completion_log_probability(logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """Summed log-probability of each row's labelled tokens, in nats; shape B."""
    target = labels[:, 1:]
    labelled = target != UNLABELLED
    if isinstance(logits, Deferred):
        parts = over_tokens(_log_probabilities, (logits,), _predicting(labelled), target[labelled])
        found = torch.cat(parts)
        return found.new_zeros(labelled.shape).masked_scatter(labelled, found).sum(-1)
    predicted = logits[:, :-1]
    log_p = _log_probabilities(predicted.to(wide(predicted.dtype)), target.clamp(min=0))
    return log_p.where(labelled, 0.0).sum(-1)


def surprise_of_rows(logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each row's labelled next tokens, in nats; 0 where none is labelled; shape B."""
    target = labels[:, 1:]
    if isinstance(logits, Deferred):
        total = -completion_log_probability(logits, labels)
    else:
        predicted = logits[:, :-1].to(wide(logits.dtype)).transpose(1, 2)
        total = F.cross_entropy(predicted, target, ignore_index=UNLABELLED, reduction="none").sum(-1)
    return total / (target != UNLABELLED).sum(-1).clamp(min=1)


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


def _log_probabilities(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The log-probability of each target."""
    return F.log_softmax(predicted, dim=-1).gather(-1, target[..., None])[..., 0]


def _sum(loss: Callable[..., torch.Tensor], logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """The sum of a loss over labelled next tokens; `loss` gets the logits of n tokens (n x V) and the tokens that follow (n)."""
    target = labels[:, 1:]
    labelled = target != UNLABELLED
    return _added(over_tokens(loss, (logits,), _predicting(labelled), target[labelled]))


def _predicting(labelled: torch.Tensor) -> torch.Tensor:
    """Which positions predict a labelled token (B x T), from which of the tokens behind the first are labelled."""
    return F.pad(labelled, (0, 1))


def _added(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(parts)).sum()
