"""Weights mixed with a fresh initialisation of the same architecture."""

from __future__ import annotations

from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from holdfast.core.types import Replaced
from holdfast.engine.anatomy import decoder_layers, feed_forward, linear_maps
from holdfast.engine.sharded import rewrite


def shrink_and_perturb(
    model: PreTrainedModel, shrink: float, noise: float, seed: int, replaced: Replaced = "all"
) -> None:
    """theta <- (1 - shrink) * theta + shrink * noise * a fresh initialisation of the same architecture, in place.

    Args:
        model: to change.
        shrink: share of the weights that is removed.
        noise: of the fresh initialisation in that share's place.
        seed: of the initialisation.
        replaced: which weights change. Norms, biases and a head that is no embedding change with `all` only.

    Raises:
        HoldfastError: the MLPs are to change, and a block has none.
    """
    chosen = None if replaced == "all" else {id(found.weight) for found in linear_maps(model)}
    if chosen is not None and replaced == "mlp":
        chosen &= {id(weight) for layer in decoder_layers(model) for weight in feed_forward(layer).parameters()}
    if chosen is not None and replaced == "maps-and-embeddings":
        chosen.add(id(model.get_input_embeddings().get_parameter("weight")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = dict(AutoModelForCausalLM.from_config(model.config).named_parameters())  # type: ignore[no-untyped-call]

    def blended(other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.mul(1 - shrink).add(other, alpha=shrink * noise)

    for name, weight in model.named_parameters():
        if chosen is None or id(weight) in chosen:
            rewrite(weight, partial(blended, fresh[name].to(weight.device, torch.float32)))
