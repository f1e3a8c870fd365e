"""Weights mixed with a fresh initialisation of the same architecture."""

from __future__ import annotations

from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from holdfast.engine.sharded import rewrite


def shrink_and_perturb(model: PreTrainedModel, shrink: float, noise: float, seed: int) -> None:
    """theta <- (1 - shrink) * theta + shrink * noise * a fresh initialisation of the same architecture, in place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = dict(AutoModelForCausalLM.from_config(model.config).named_parameters())  # type: ignore[no-untyped-call]

    def blended(other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.mul(1 - shrink).add(other, alpha=shrink * noise)

    for name, weight in model.named_parameters():
        rewrite(weight, partial(blended, fresh[name].to(weight.device, torch.float32)))
