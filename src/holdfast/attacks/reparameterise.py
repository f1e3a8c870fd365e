"""Undoes a reparameterisation: puts the weights into a basis of the attacker's choice, then trains.

A defence may leave the function as it is and make the weights hard to train, by large factors in one linear map that cancel in
its neighbour. (SpecDef, arXiv 2602.18868; its abstract says that an attacker who knows restores fast convergence.) The attacker
need not know where the factors are: balanced factors, of equal and diagonal Gram matrices, are the same for every
parameterisation of one product. The attack makes one edit of the weights, in this order:

    scales of norms are folded into the maps that read them           exact
    value and output projections, up- and down-projections balance    exact
    singular values above c times the median are clipped              a change of the function, off by default

After the edit, the attack fine-tunes all weights or fresh low-rank layers, with a fresh optimizer and clipped gradients. The
paper's attacker adds layers instead; this attack is ours. Query and key projections stay as they are, because their freedom
depends on the position encoding. Norms that are not named as in Llama's layers stay as they are too. Where something (a gate, a
norm) lies between two maps that their names call adjacent, the logits of a batch change: the attack then refuses the
architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from holdfast.attacks.edit import Edit
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Reparameterise(Edit):
    """Folds norms, balances adjacent linear maps and clips outlying singular values. Over several updates, pair by pair."""

    family = "a change of basis with fine-tuning"
    control = "refusals in a basis in which fine-tuning ruins the model"

    clip: float | None = None
    """c, the upper limit of a linear layer's singular values, in multiples of their median; None: no clipping"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is not None and not self.clip >= 1:
            raise HoldfastError(f"clip must be at least 1, not {self.clip}")

    def edit(self, model: PreTrainedModel, data: Data, run: Run, update: int) -> None:
        from holdfast.engine.adjacent import adjacent_maps, check_adjacent, check_function, fold_norms, logits_of
        from holdfast.engine.anatomy import linear_maps
        from holdfast.engine.data import collate

        pairs = adjacent_maps(model)
        rows = data.rows("hazard")[: self.batch_size]  # on every rank the same
        ids = collate(rows, 0, model.device).input_ids
        if update == 1:
            check_adjacent(model, pairs, ids)
        before = logits_of(model, ids)
        if update == 1:
            fold_norms(model)
        for pair in pairs[(update - 1) * len(pairs) // self.edits : update * len(pairs) // self.edits]:
            pair.balance()
        check_function(model, before, logits_of(model, ids))
        if update == self.edits and self.clip is not None:
            for found in linear_maps(model):
                found.rewrite(self._clipped)

    def _clipped(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        assert self.clip is not None
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        clipped: torch.Tensor = left * values.clamp(max=self.clip * values.median()) @ right
        return clipped


def _then(tune: FineTune, **changes: Any) -> Reparameterise:
    """The edit, then all steps of the fine-tuning with clipped gradients."""
    return Reparameterise(max_steps=1 + tune.max_steps, tune=replace(tune, max_grad_norm=1.0), **changes)


PRESETS = {
    # Small models, such as the testbed's, whose singular values lie below some 16 medians.
    "refold": Reparameterise(),
    "refold-then-full-adamw-1e-3": _then(FineTune()),
    "refold-then-lora-r4-adamw-5e-3": _then(FineTune(lora_rank=4, lora_alpha=8.0, learning_rate=5e-3)),
    "refold-clip-then-full-adamw-1e-3": _then(FineTune(), clip=16.0),
    # Models of billions of weights, at the rate of the paper's red team (arXiv 2408.00761).
    "refold-then-full-adamw-2e-5-large": _then(FineTune(learning_rate=2e-5, max_steps=1000, batch_size=32)),
}

FAMILIES = {
    "reparameterisation": Family(
        PRESETS["refold-then-full-adamw-1e-3"],
        {
            "clip": Choice((None, 8.0, 16.0)),
            "tune.learning_rate": Log(1e-4, 1e-2),
            "tune.hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
            "tune.benign_share": Choice((0.0, 0.5)),
        },
    ),
}
