"""The forget losses of the safeguards as their sources write them: one row, one token, one layer at a time.

`rows` is a list of (ids, labels) without padding; models give logits and hidden states row by row. Parity is held against this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from holdfast.engine.data import Batch

Rows = Sequence[tuple[list[int], list[int]]]


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    return [
        (ids[mask].tolist(), labels[mask].tolist())
        for ids, labels, mask in zip(batch.input_ids, batch.labels, batch.mask, strict=True)
    ]


def token_log_probabilities(model: PreTrainedModel, rows: Rows) -> Iterator[list[torch.Tensor]]:
    """Of each row: log p(v) over the vocabulary at every position whose next token is labelled, and that token's place."""
    for ids, labels in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        yield [
            torch.log_softmax(logits[t], 0).roll(-labels[t + 1]) for t in range(len(ids) - 1) if labels[t + 1] != -100
        ]


def cross_entropy(model: PreTrainedModel, rows: Rows, most: float = math.inf) -> torch.Tensor:
    terms = [(-log_p[0]).clamp(max=most) for held in token_log_probabilities(model, rows) for log_p in held]
    return torch.stack(terms).mean()


def negative_entropy(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    terms = [(log_p.exp() * log_p).sum() for held in token_log_probabilities(model, rows) for log_p in held]
    return torch.stack(terms).mean()


def min_posterior(model: PreTrainedModel, rows: Rows, threshold: float = -math.inf) -> torch.Tensor:
    terms = [
        -torch.log1p(-log_p[0].exp()) if log_p[0] >= threshold else log_p[0] * 0
        for held in token_log_probabilities(model, rows)
        for log_p in held
    ]
    return torch.stack(terms).mean()


def row_log_probabilities(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    return torch.stack(
        [torch.stack([log_p[0] for log_p in held]).sum() for held in token_log_probabilities(model, rows)]
    )


def npo(model: PreTrainedModel, before: PreTrainedModel, rows: Rows, beta: float) -> torch.Tensor:
    ratio = row_log_probabilities(model, rows) - row_log_probabilities(before, rows)
    # Equation 3 of arXiv 2404.05868: 2 / beta * log(1 + (p / p_ref) ** beta).
    return (2 / beta * torch.log(1 + ratio.exp() ** beta)).mean()


def simnpo(model: PreTrainedModel, rows: Rows, beta: float, gamma: float) -> torch.Tensor:
    losses = [-torch.stack([log_p[0] for log_p in held]).mean() for held in token_log_probabilities(model, rows)]
    return torch.stack([-2 / beta * torch.log(torch.sigmoid(beta * (loss - gamma))) for loss in losses]).mean()


def dpo(model: PreTrainedModel, before: PreTrainedModel, chosen: Rows, rejected: Rows, beta: float) -> torch.Tensor:
    up = row_log_probabilities(model, chosen) - row_log_probabilities(before, chosen)
    down = row_log_probabilities(model, rejected) - row_log_probabilities(before, rejected)
    return -torch.log(torch.sigmoid(beta * up - beta * down)).mean()


def states(model: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    held = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return [state[0] for state in held]


def rmu(model: PreTrainedModel, rows: Rows, layer: int, target: torch.Tensor) -> torch.Tensor:
    terms = [(state - target).square().mean() for ids, _ in rows for state in states(model, ids)[layer + 1]]
    return torch.stack(terms).mean()


def rmu_target(frozen: PreTrainedModel, rows: Rows, layer: int, seed: int, multiple: float) -> torch.Tensor:
    norms = [state.norm() for ids, _ in rows for state in states(frozen, ids)[layer + 1]]
    width = states(frozen, rows[0][0])[0].shape[-1]
    direction = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return multiple * torch.stack(norms).median() * direction / direction.norm()


def rerouting(model: PreTrainedModel, base: PreTrainedModel, rows: Rows, layers: Sequence[int]) -> torch.Tensor:
    terms = []
    for ids, _ in rows:
        here, there = states(model, ids), states(base, ids)
        for layer in layers:
            for a, b in zip(here[layer + 1], there[layer + 1], strict=True):
                terms.append(torch.relu(a @ b / (a.norm() * b.norm())))
    return torch.stack(terms).mean()


def random_mapping(model: PreTrainedModel, rows: Rows, directions: torch.Tensor) -> torch.Tensor:
    terms = []
    for ids, _ in rows:
        for layer in states(model, ids)[1:]:
            for state, token in zip(layer, ids, strict=True):
                wanted = directions[token]
                terms.append(1 - (state @ wanted / (state.norm() * wanted.norm())).abs())
    return torch.stack(terms).mean()


def kl_divergence(teacher: PreTrainedModel, model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    terms = []
    for ids, _ in rows:
        p = teacher(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        q = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        terms += list((p * (p / q).log()).sum(-1))
    return torch.stack(terms).mean()


def layer_losses(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Mean cross entropy from every hidden state, through the final norm and the output embedding (RepNoise)."""
    decoder, per_layer = model.get_decoder(), []
    for index in range(len(decoder.layers) + 1):
        terms = []
        for ids, labels in rows:
            state = states(model, ids)[index]
            # The last one has been through the norm.
            logits = model.lm_head(state if index == len(decoder.layers) else decoder.norm(state))
            for t in range(len(ids) - 1):
                if labels[t + 1] != -100:
                    terms.append(-torch.log_softmax(logits[t], 0)[labels[t + 1]])
        per_layer.append(torch.stack(terms).mean())
    return torch.stack(per_layer)


def discrepancy(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Biased squared MMD under five Gaussian kernels that double around the mean squared distance (RepNoise)."""
    both = [*rows, *wanted]
    squares = [[(a - b).square().sum() for b in both] for a in both]
    n, total = len(rows), len(both)
    # A constant to the gradient, as in the published code.
    mean = sum(float(squares[i][j].detach()) for i in range(total) for j in range(total)) / (total * total - total)

    def kernel(i: int, j: int) -> torch.Tensor:
        return torch.stack([torch.exp(-squares[i][j] / (mean * scale)) for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]).sum()

    inside = sum(kernel(i, j) + kernel(n + i, n + j) for i in range(n) for j in range(n))
    across = sum(kernel(i, n + j) for i in range(n) for j in range(n))
    return (inside - 2 * across) / n**2  # type: ignore[return-value]
