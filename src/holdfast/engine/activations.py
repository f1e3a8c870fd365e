"""Where a model has massive activations: tokens whose hidden state is far longer than the others' (arXiv 2402.17762).

Such a token, mostly the first of a text, is an attention sink. A loss on raw hidden states is nearly all about that token.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from holdfast.engine.data import Batch
from holdfast.engine.losses import without_sinks
from holdfast.engine.stream import hidden_states


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The lengths of one layer's hidden states."""

    layer: int
    """0 is the embedding, 1 the output of the first layer"""
    usual: float
    """the median length over tokens"""
    longest: float
    """the greatest length"""
    sinks: float
    """the share of tokens that are sinks"""
    positions: tuple[int, ...]
    """of the sinks, the commonest first, 3 at most; 0 is a text's first token"""

    @property
    def ratio(self) -> float:
        """The longest state, as a multiple of the median."""
        return self.longest / self.usual if self.usual else 0.0


def activations(model: PreTrainedModel, batch: Batch) -> list[Activations]:
    """The lengths of the hidden states of each layer on a batch; where a layer has several streams, of all together."""
    with torch.no_grad():
        _, hidden = hidden_states(model, batch.input_ids, several=True)
    found = []
    for layer, states in enumerate(hidden):
        flat = states.flatten(2)
        norms = flat.float().norm(dim=-1)
        sinks = batch.mask & ~without_sinks(batch.mask, flat)
        places = Counter(sinks.nonzero()[:, 1].tolist())
        found.append(
            Activations(
                layer=layer,
                usual=float(norms[batch.mask].median()),
                longest=float(norms[batch.mask].max()),
                sinks=float(sinks.sum() / batch.mask.sum()),
                positions=tuple(place for place, _ in places.most_common(3)),
            )
        )
    return found
