"""The few types that everything shares; nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Measure = Literal["hazard", "ability", "refusal", "degeneracy", "trainability", "masking"]
"""What an evaluation measures. An attacker wants hazard high and ability kept; a defender wants hazard low.

`masking` tells whether a safeguard hides its gradients or its knowledge rather than lacking them."""

Distance = Literal["l2", "mse", "relative", "relative_mse"]
"""The distance of two hidden states: the norm of their difference, or its mean square."""

Replaced = Literal["all", "maps-and-embeddings", "maps", "mlp"]
"""Which weights are made fresh: all; those of the blocks' linear maps, with or without the input embeddings; of these the maps
in the MLPs alone."""


class HoldfastError(Exception):
    """An error that the user can mend. Its text is one sentence: what is wrong and what to do about it."""


class NonFinite(HoldfastError):
    """A loss, logit or weight is not finite, so its run or score is void."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number."""

    metric: str
    value: float
    stderr: float | None
    """standard error over the questions or rows; None where it has no meaning"""
    n: int
    """questions or rows it was taken over"""
    chance: float | None = None
    """what guessing scores; None where it has no meaning"""


NumberType = Literal["float32", "bfloat16", "float16"]
"""the type of stored numbers"""

Precision = Literal["float32", "mixed", "lean"]
Matmul = Literal["torch", "onednn"]
"""How a model is computed. `mixed` is float32 weights whose products are taken in bfloat16. `lean` is bfloat16 weights that are
rounded at random, with optimizer states in eight bits (`engine.lean`)."""


def weights_of(precision: Precision | NumberType) -> NumberType:
    """The type that a model's weights have in memory."""
    if precision == "lean":
        return "bfloat16"
    return "float32" if precision == "mixed" else precision


Sibling = Literal["earlier", "fine-tuned", "quantised"]
"""A model that is next of kin to a testbed's undefended model (`runs.siblings`)."""
SIBLINGS: tuple[Sibling, ...] = get_args(Sibling)
