"""Weights mixed with a fresh initialisation of the same architecture."""

from __future__ import annotations

from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from holdfast.engine.anatomy import linear_maps
from holdfast.engine.sharded import rewrite


def shrink_and_perturb(
    model: PreTrainedModel, shrink: float, noise: float, seed: int, *, maps_only: bool = False
) -> None:
    """theta <- (1 - shrink) * theta + shrink * noise * a fresh initialisation of the same architecture, in place.

    Args:
        model: to change.
        shrink: share of the weights that is removed.
        noise: of the fresh initialisation in that share's place.
        seed: of the initialisation.
        maps_only: change the weights of the blocks' linear maps, and leave embeddings, norms, biases and the head.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = dict(AutoModelForCausalLM.from_config(model.config).named_parameters())  # type: ignore[no-untyped-call]

    def blended(other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.mul(1 - shrink).add(other, alpha=shrink * noise)

    chosen = {id(found.weight) for found in linear_maps(model)} if maps_only else None
    for name, weight in model.named_parameters():
        if chosen is None or id(weight) in chosen:
            rewrite(weight, partial(blended, fresh[name].to(weight.device, torch.float32)))
