"""Refusal training: supervised fine-tuning on refusals (SFT), and preference of refusal over compliance (DPO).

    SFT:  loss = retain(theta) + w * LM(refusals of forget rows)
    DPO:  loss = retain(theta) + w * mean over pairs of -log sigmoid(beta * (margin(theta) - margin(before))) + v * LM(refusals)

where margin = log p(refusal) - log p(compliance), summed over the completion's tokens with the prompt masked, and `before` is
the model before this stage (arXiv 2305.18290, equation 7; beta 0.1). The forget rows are preference rows. Constants were chosen
on the testbed. Neither method compares hidden states, because refusal training comes before the behaviour that a safeguard must
preserve. Deviation: v is 1 (as in arXiv 2404.19733). Plain DPO, v = 0, made two of the testbed's three refusals unreadable at
every rate tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from holdfast.core.ranges import check_settings
from holdfast.engine.optimizers import OptimizerName
from holdfast.safeguards.base import Safeguard, Term
from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.objective import RetainLoss, language_model_loss, take_gradient
from holdfast.safeguards.parts.pairs import PairBatch, Pairs, dpo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss

_LANGUAGE_MODEL_ONLY = RetainLoss(representations=None)


@dataclass(frozen=True, kw_only=True)
class RefusalSFT(Forgetting):
    """Trains on refusals of forbidden requests (supervised fine-tuning)."""

    forget_loss_name: ClassVar[str] = "refusal loss"
    side: ClassVar[Literal["chosen"] | None] = "chosen"

    outer_steps: int = 120
    """updates of the published weights"""
    learning_rate: float = 5e-4
    """constant learning rate"""
    retain: RetainLoss = _LANGUAGE_MODEL_ONLY
    """the retain loss"""

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        def loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            return next_token_loss(logits, part.labels, part.label_count)

        return loss


@dataclass(frozen=True, kw_only=True)
class RefusalDPO(Safeguard):
    """Trains the model to prefer refusal over compliance (direct preference optimisation)."""

    rate_setting: ClassVar[str] = "learning_rate"

    outer_steps: int = 120
    """updates of the published weights"""
    learning_rate: float = 2e-4
    """constant learning rate"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    beta: float = 0.1
    """inverse temperature of the preference"""
    forget_weight: float = 1.0
    """weight w of the preference loss relative to the retain loss"""
    refusal_weight: float = 1.0
    """weight v of the LM loss on the refusals"""
    forget_batch_size: int = 16
    """pairs a step, from forget and forget_heldout together"""
    retain_batch_size: int = 32
    """retain rows a step"""
    retain: RetainLoss = _LANGUAGE_MODEL_ONLY
    """the retain loss"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("outer_steps", "forget_batch_size", "retain_batch_size", "micro_batch", "learning_rate", "beta"),
            not_negative=("weight_decay", "forget_weight", "refusal_weight"),
        )

    @property
    def needs_pairs(self) -> bool:
        return True

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        pairs = Pairs(
            data.renamed(forget=("forget", "forget_heldout")), "forget", self.forget_batch_size, run.seed, run.initial
        )
        batch, benign = next(pairs), next(data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1))
        preference = Term(
            name="preference loss",
            setting="forget_weight",
            weight=self.forget_weight,
            keeps=False,
            take=lambda gradients: take_gradient(
                gradients, 1.0, lambda part: dpo(model, part, self.beta), batch, self.micro_batch
            ),
        )
        refusal = Term(
            name="refusal loss",
            setting="refusal_weight",
            weight=self.refusal_weight,
            keeps=False,
            take=lambda gradients: take_gradient(
                gradients, 1.0, language_model_loss(model), batch.chosen, self.micro_batch
            ),
        )
        base = run.base if self.retain.compares else None
        return preference, refusal, *self.retain.terms("retain", model, base, benign, self.micro_batch)

    def against_sinks(self) -> Mapping[str, Any]:
        return self.retain.against_sinks("retain")

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import GradientSum, trainable

        pooled = data.renamed(forget=("forget", "forget_heldout"))
        pairs = Pairs(pooled, "forget", self.forget_batch_size, run.seed, run.initial)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate, weight_decay=self.weight_decay)
        run.track(optimizer=optimizer, pairs=pairs, retain=retain)
        base = run.base if self.retain.compares else None
        gradients = GradientSum(model)

        def preference_loss(part: PairBatch) -> torch.Tensor:
            return dpo(model, part, self.beta)

        def refusal_loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            return next_token_loss(logits, part.labels, part.label_count)

        for _ in range(run.start, self.outer_steps):
            model.train()
            training_point(optimizer)
            gradients.clear()
            batch = next(pairs)
            losses = {
                "preference loss": take_gradient(
                    gradients, self.forget_weight, preference_loss, batch, self.micro_batch
                ),
                "refusal loss": take_gradient(
                    gradients, self.refusal_weight, refusal_loss, batch.chosen, self.micro_batch
                ),
                "retain loss": self.retain.take(gradients, 1.0, model, base, next(retain), self.micro_batch),
            }
            gradients.give()
            optimizer.step()
            published_point(optimizer)
            model.train(False)
            yield losses


PRESETS = {
    "refusal-sft": RefusalSFT(),
    "refusal-dpo": RefusalDPO(),
    # Hundreds of millions of weights: of six trials of the second stage (`holdfast study real-refusals-full`) the lowest rate let
    # least return; all of them refused every request before an attack.
    "refusal-sft-small": RefusalSFT(outer_steps=60, learning_rate=5e-5, forget_batch_size=8, retain_batch_size=8),
    "refusal-dpo-small": RefusalDPO(outer_steps=60, learning_rate=1e-5, forget_batch_size=8, retain_batch_size=8),
    "refusal-sft-large": RefusalSFT(outer_steps=500, learning_rate=1e-5, forget_batch_size=16, retain_batch_size=16),
    "refusal-dpo-large": RefusalDPO(outer_steps=500, learning_rate=5e-7),
}
