"""SOPHON-AR: non-fine-tunable learning, adapted to autoregressive models. A baseline of TAR's paper.

    theta <- theta - eta * lambda * mean over k of grad -log(1 - p(x; attack_k(theta)))      fine-tuning suppression
    theta <- theta - eta * grad LM(retain; theta)                                          normal training

SOPHON (arXiv 2404.12699) alternates the two updates and gives each update an optimizer. Its suppression loss for classifiers is
the inverse cross entropy, which is bounded below; a negated cross entropy is not bounded below. TAR's paper (arXiv 2408.00761)
adapts SOPHON as a baseline, reports that SOPHON does not converge, and gives no constants that we know of. From the source: one
update of each kind in turn, the same weight for every inner step, first-order gradients through simulated fine-tuning, the
inverse cross entropy -log(1 - p) (the published code takes the cross entropy of 1 - logits, which is another loss). Our
reading: the inner loop is TAR's; both optimizers have one rate, where the code has 3e-4 and 5e-4; the adversary is plain
fine-tuning with AdamW on hazardous rows; adversary and suppression share their rows; there is no initial safeguard, so
`sophon-ar` is a stage for an untouched model. Constants are those of MLAC-AR, which were chosen on the testbed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import OptimizerName
from holdfast.safeguards.mlac import PRESETS as MLAC
from holdfast.safeguards.parts.outer_loop import FORGET_AND_HELDOUT, OuterLoop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class SOPHON(OuterLoop):
    """Alternates fine-tuning suppression with normal training, with an optimizer for each."""

    adversary_roles: ClassVar[tuple[str, ...]] = FORGET_AND_HELDOUT
    x_tr_roles: ClassVar[tuple[str, ...]] = FORGET_AND_HELDOUT

    outer_optimizer: OptimizerName = "adamw"
    """the name of both outer optimizers"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outer_optimizer == "schedule-free-adamw":
            raise HoldfastError(
                "SOPHON has two outer optimizers, and two schedule-free ones cannot share weights; take adamw"
            )

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.sharded import GradientSum, Snapshot

        suppression, training = self.optimizer(model, run), self.optimizer(model, run)
        gradients = GradientSum(model, run.aside)
        x_tr, adversary_data = self.x_tr(data, run), self.adversary_data(data)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        run.track(suppression=suppression, training=training, x_tr=x_tr, retain=retain)
        base, theta = self.reference(run), Snapshot(model, run.aside)
        for step in range(run.start, self.outer_steps):
            theta.take()
            suppression_loss = 0.0
            for _ in range(self.adversaries_per_step):
                adversary, batch, loss = self.draw(run.generator), next(x_tr), 0.0
                for weight in self.attacked(adversary, model, adversary_data, run):
                    loss = self.take_tamper_resistance(gradients, weight, model, batch)
                suppression_loss += loss
                theta.restore()
            model.train()
            self.update(suppression, gradients, model, step)
            retain_loss = self.retain.take(gradients, self.retain_weight, model, base, next(retain), self.micro_batch)
            self.update(training, gradients, model, step)
            model.train(False)
            yield {
                "tamper-resistance loss": suppression_loss / self.adversaries_per_step,
                "retain loss": retain_loss,
            }


def _like_mlac(name: str) -> SOPHON:
    shared: dict[str, Any] = {field.name: getattr(MLAC[name], field.name) for field in fields(OuterLoop)}
    return SOPHON(**{**shared, "tamper_resistance": "inverse-cross-entropy"})


PRESETS = {"sophon-ar": _like_mlac("mlac-ar"), "sophon-ar-large": _like_mlac("mlac-ar-large")}
