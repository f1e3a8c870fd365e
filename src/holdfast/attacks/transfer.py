"""Transfer: an update that was computed on the model before the safeguard, added to the defended one.

    base <- one step of fine-tuning of the base model;    W <- W + (what that step changed)

A safeguard that spoils its own gradients does not spoil those of the model it was made from. If the base's update undoes it
where updates of its own do not, its gradients were masked (transfer as a check for that: Athalye et al., arXiv 1802.00420). As a
task vector of training it is an addition in task arithmetic (arXiv 2212.04089, abstract). It grants the attacker the base model.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.core.data import Data
    from holdfast.core.runtime import Run


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Fine-tunes a copy of the base model and makes the same steps in the defended one."""

    tune: FineTune = FineTune()
    """how the base model is tuned; its max_steps gives way to max_steps"""

    def __post_init__(self) -> None:
        if self.tune.lora_rank:
            raise HoldfastError("an update that is transferred is one of all weights; set the rank of tune to 0")

    @property
    def benign_steps(self) -> int:
        return self._whole().benign_steps

    @property
    def uses_base(self) -> bool:
        return True

    def reads(self) -> tuple[str, ...]:
        return self.tune.reads()

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import copy

        import torch

        from holdfast.core.sharded import Snapshot, local

        model.train(False)
        base = copy.deepcopy(run.base).requires_grad_(True)
        weights, theirs = dict(model.named_parameters()), dict(base.named_parameters())
        if {n: p.shape for n, p in weights.items()} != {n: p.shape for n, p in theirs.items()}:
            raise HoldfastError("the base model has other weights than the model, so its updates cannot be added to it")
        tuned = Snapshot(base)
        run.track(tuned=tuned)  # a resumed run goes on from where the copy was
        tuned.restore()
        for loss in self._whole().steps(base, data, run):
            with torch.no_grad():
                moved = tuned.difference()
                torch._foreach_add_([local(weights[name].detach()) for name in theirs], moved)
            tuned.take()
            yield loss

    def _whole(self) -> FineTune:
        return replace(self.tune, max_steps=self.max_steps)


_LARGE = FineTune(learning_rate=2e-5, batch_size=32)

PRESETS = {
    # Small models, such as the testbed's.
    "transfer-full-adamw-1e-3": Transfer(),
    # Models of billions of weights, at the rate of the paper's red team (arXiv 2408.00761).
    "transfer-full-adamw-2e-5": Transfer(tune=_LARGE, max_steps=1000),
}

FAMILIES = {
    "transfer": Family(
        PRESETS["transfer-full-adamw-1e-3"],
        {
            "tune.learning_rate": Log(1e-4, 1e-2),
            "tune.hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
            "max_steps": Choice((40, 80, 160)),
        },
    ),
}
