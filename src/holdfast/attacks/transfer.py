"""Transfer: fine-tunes the model from before the safeguard, and adds the update to the defended weights.

    W_t = W_defended + (W_base,t - W_base)

The fine-tuning never sees the safeguard, so no effect of the safeguard on gradients can stop the attack. The attack depends
only on whether the update still works at the defended weights. The update is a task vector (task arithmetic, arXiv 2212.04089).
The threat model: the attacker holds the model from before the safeguard, which is public for most releases.

During training, the base's weights replace the defended weights in the same model, so that there is no second model and the
sharding is the same. Three sets of weights are copied: the defended model, the fine-tuned base, and the base less the defended
model.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.merge import rewrite_by_base
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.core.disguise import Disguise
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Add the update that full-parameter fine-tuning makes to the base model. The yielded loss is the loss of the base model."""

    family = "transfer of an update from the original model"
    control = "refusals of the original model, made firmer in the defended model"

    tune: FineTune = FineTune()
    """the fine-tuning of all weights of the base; the max_steps of this attack replaces the max_steps of `tune`"""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise HoldfastError(f"max_steps must be at least 1, not {self.max_steps}")
        if self.tune.lora_rank:
            raise HoldfastError("transfer adds an update of all weights; give it fine-tuning with lora_rank 0")

    @property
    def benign_steps(self) -> int:
        return self._tuning.benign_steps

    @property
    def uses_base(self) -> bool:
        return True

    @property
    def transfers(self) -> bool:
        return True

    @property
    def rows_per_step(self) -> int:
        return self.tune.rows_per_step

    @property
    def disguise(self) -> Disguise | None:
        return self.tune.disguise

    def reads(self) -> tuple[str, ...]:
        return self.tune.reads()

    @property
    def _tuning(self) -> FineTune:
        return replace(self.tune, max_steps=self.max_steps)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.sharded import Snapshot, local, trainable

        defended = Snapshot(model)
        rewrite_by_base(dict(model.named_parameters()), run, lambda base, weight: base)
        tuned = Snapshot(model)
        run.track(found=defended, tuned=tuned)  # the name in stored states
        # The model has the weights of the base now.
        base_less_defended = [local(difference) for difference in defended.difference()]
        tuning = self._tuning.steps(model, data, run)
        for _ in range(run.start, self.max_steps):
            tuned.restore()
            loss = next(tuning)
            tuned.take()
            with torch.no_grad():
                torch._foreach_sub_([local(weight.detach()) for weight in trainable(model)], base_less_defended)
            yield loss


PRESETS = {
    # Small models, such as the testbed's.
    "transfer-full-adamw-1e-3": Transfer(),
    # Models of billions of weights.
    "transfer-full-adamw-2e-5-large": Transfer(max_steps=1000, tune=FineTune(learning_rate=2e-5, batch_size=32)),
}

FAMILIES = {
    "transfer": Family(
        Transfer(),
        {
            "tune.learning_rate": Log(1e-4, 1e-2),
            "tune.hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
            "max_steps": Choice((40, 80, 160)),
        },
    ),
}
