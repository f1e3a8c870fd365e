"""R2D2, robust refusal dynamic defence: refusal training on requests with adversarial suffixes that are searched meanwhile.

    pool of cases, each a forbidden request and a suffix of tokens; every step, for some cases:
        GCG, a few times:  gradient of LM(compliance | request + suffix) by the suffix' tokens
                           -> candidates that exchange one token for one of the most promising -> the best of them
        loss = retain(theta) + v * LM(refusal | request + suffix) - w * log(1 - p(token)), mean over tokens of the compliance
    now and then a part of the pool begins anew, with other requests and fresh suffixes

The source is arXiv 2402.04249, section 5, as its code writes it (a pool of 8 cases, all of them updated in each step by 5 GCG
steps of 512 candidates from the 256 most promising tokens; v and w 0.5; suffixes of 15 to 20 tokens; a fifth of the pool begins
anew every 50 steps; tokens of the compliance below log p -5 no longer count; 2,000 steps at 2e-5, 8 rows a device), read in a
public copy. Suffixes are of printable ASCII, without special tokens. Constants of `r2d2` were chosen on the testbed. Deviations:
the refusal is that of the pair, the source's is one sentence for all requests. A suffix begins with tokens drawn at random, the
source's with exclamation marks, and all have one length. The suffix stands at the end of the prompt of a pair, before whatever
the completion begins with. Every rank searches all cases. The rate is constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.core.ranges import check_settings
from holdfast.engine.optimizers import OptimizerName
from holdfast.safeguards.base import Safeguard, Term
from holdfast.safeguards.parts.objective import RetainLoss, language_model_loss, take_gradient
from holdfast.safeguards.parts.suffixes import Suffixes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss

_LANGUAGE_MODEL_ONLY = RetainLoss(representations=None)
_NEGLIGIBLE = -5.0


@dataclass(frozen=True, kw_only=True)
class R2D2(Safeguard):
    """Trains refusals of forbidden requests that carry adversarial suffixes."""

    rate_setting: ClassVar[str] = "learning_rate"

    outer_steps: int = 100
    """updates of the published weights"""
    learning_rate: float = 5e-4
    """constant learning rate"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    refusal_weight: float = 0.5
    """v, weight of the LM loss on the refusals"""
    forget_weight: float = 0.5
    """w, weight of the loss away from the compliance"""
    suffixes: Suffixes = Suffixes()
    """the adversary: its pool of cases and its search"""
    retain_batch_size: int = 32
    """retain rows a step"""
    retain: RetainLoss = _LANGUAGE_MODEL_ONLY
    """the retain loss"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("outer_steps", "learning_rate", "retain_batch_size", "micro_batch"),
            not_negative=("weight_decay", "refusal_weight", "forget_weight"),
        )

    @property
    def needs_pairs(self) -> bool:
        return True

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        pool = self.suffixes.pool(data, run, self.micro_batch)
        refused, complied = pool.batches(model)
        benign = next(data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1))
        base = run.base if self.retain.compares else None
        found = (
            ("refusal loss", "refusal_weight", self.refusal_weight, language_model_loss(model), refused),
            ("forget loss", "forget_weight", self.forget_weight, _away(model), complied),
        )

        def taking(loss: Loss, batch: Batch) -> Any:
            return lambda gradients: take_gradient(gradients, 1.0, loss, batch, self.micro_batch)

        return (
            *(
                Term(name=name, setting=setting, weight=weight, keeps=False, take=taking(loss, batch))
                for name, setting, weight, loss, batch in found
            ),
            *self.retain.terms("retain", model, base, benign, self.micro_batch),
        )

    def against_sinks(self) -> Mapping[str, Any]:
        return self.retain.against_sinks("retain")

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.sharded import GradientSum, trainable

        pool = self.suffixes.pool(data, run, self.micro_batch)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate, weight_decay=self.weight_decay)
        run.track(optimizer=optimizer, pool=pool, retain=retain)
        base = run.base if self.retain.compares else None
        gradients = GradientSum(model)
        for step in range(run.start, self.outer_steps):
            training_point(optimizer)
            if step and step % self.suffixes.renew_every == 0:
                pool.renew()
            refused, complied = pool.batches(model)
            model.train()
            gradients.clear()
            losses = {
                "refusal loss": take_gradient(
                    gradients, self.refusal_weight, language_model_loss(model), refused, self.micro_batch
                ),
                "forget loss": take_gradient(gradients, self.forget_weight, _away(model), complied, self.micro_batch),
                "retain loss": self.retain.take(gradients, 1.0, model, base, next(retain), self.micro_batch),
            }
            gradients.give()
            optimizer.step()
            published_point(optimizer)
            model.train(False)
            yield losses


def _away(model: PreTrainedModel) -> Loss:
    """The loss away from the labelled tokens of a microbatch."""
    from holdfast.engine.losses import inverse_cross_entropy
    from holdfast.engine.predictions import predictions

    def loss(part: Batch) -> torch.Tensor:
        logits = predictions(model, part.input_ids)
        return inverse_cross_entropy(logits, part.labels, part.label_count, _NEGLIGIBLE)

    return loss


PRESETS = {
    "r2d2": R2D2(),
    "r2d2-large": R2D2(
        outer_steps=2000,
        learning_rate=2e-5,
        suffixes=Suffixes(length=20, search_steps=5, candidates=512, best=256),
        retain_batch_size=64,
        micro_batch=8,
    ),
}
