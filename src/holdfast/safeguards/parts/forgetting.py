"""The training loop of the safeguards that weigh a loss on hazardous rows against a retain loss, one update a step.

    loss = w * forget(theta) + retain(theta) + v * refuse(theta)

The kinds differ in the forget loss alone; `refuse` is the LM loss of the refusals in preference rows.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from holdfast.core.ranges import check_settings
from holdfast.engine.optimizers import OptimizerName
from holdfast.safeguards.base import Safeguard, Term
from holdfast.safeguards.parts.latent_adversary import LatentAdversary
from holdfast.safeguards.parts.objective import RetainLoss, language_model_loss, take_gradient

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum

    Loss = Callable[[Batch], torch.Tensor]
    """Of a microbatch: a scalar that adds up over microbatches and ranks."""


@dataclass(frozen=True, kw_only=True)
class Forgetting(Safeguard):
    """Base of the forget-and-retain safeguards; a subclass gives the forget loss."""

    rate_setting: ClassVar[str] = "learning_rate"
    forget_loss_name: ClassVar[str] = "forget loss"
    side: ClassVar[Literal["chosen"] | None] = None
    """completion of preference rows that the forget loss reads; None: the harmful completion"""
    compares_rows: ClassVar[bool] = False
    """True: the forget loss compares the rows of a batch with each other, so that a batch must stay whole"""

    learning_rate: float = 1e-3
    """constant learning rate"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    forget_batch_size: int = 32
    """hazardous rows a step, from forget and forget_heldout together"""
    retain_batch_size: int = 32
    """retain rows a step"""
    forget_weight: float = 1.0
    """weight w of the forget loss relative to the retain loss"""
    refusal_weight: float = 0.0
    """weight v of the LM loss on the refusals of the forget rows, which are then preference rows"""
    retain: RetainLoss = RetainLoss()
    """the retain loss"""
    latent: LatentAdversary | None = None
    """an adversary in the hidden states, against which the forget loss is taken (latent adversarial training)"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("outer_steps", "forget_batch_size", "retain_batch_size", "micro_batch", "learning_rate"),
            not_negative=("weight_decay", "forget_weight", "refusal_weight"),
        )

    @abc.abstractmethod
    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        """Set up the forget loss once; return the function that gives the loss of a microbatch of forget rows.

        Random numbers of the set-up come from the seed alone, not from `run.generator`, whose state is a later one in a
        resumed run.
        """

    def take_forget(self, gradients: GradientSum, loss: Loss, model: PreTrainedModel, batch: Batch) -> float:
        """Add the weighted gradient of the forget loss to `gradients`; return the loss."""
        return take_gradient(gradients, self.forget_weight, loss, batch, self.micro_batch)

    @property
    def needs_pairs(self) -> bool:
        return self.side is not None or self.refusal_weight > 0

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        pooled = data.renamed(forget=("forget", "forget_heldout"))
        hazardous = next(pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed, side=self.side))
        benign = next(data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1))
        alone, loss = replace(self, forget_weight=1.0), self._attacked(self.forget_loss(model, data, run), model)
        found = [
            Term(
                name=self.forget_loss_name,
                setting="forget_weight",
                weight=self.forget_weight,
                keeps=False,
                take=lambda gradients: alone.take_forget(gradients, loss, model, hazardous),
            )
        ]
        if self.refusal_weight:
            chosen = next(pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed, side="chosen"))
            found.append(
                Term(
                    name="refusal loss",
                    setting="refusal_weight",
                    weight=self.refusal_weight,
                    keeps=False,
                    take=lambda gradients: take_gradient(
                        gradients, 1.0, language_model_loss(model), chosen, self.micro_batch
                    ),
                )
            )
        base = run.base if self.retain.compares else None
        return (*found, *self.retain.terms("retain", model, base, benign, self.micro_batch))

    def against_sinks(self) -> Mapping[str, Any]:
        spares = {"spare_sinks": True} if getattr(self, "spare_sinks", True) is False else {}
        return {**spares, **self.retain.against_sinks("retain")}

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.sharded import GradientSum

        pooled = data.renamed(forget=("forget", "forget_heldout"))
        forget = pooled.stream(
            "forget", batch_size=self.forget_batch_size, seed=run.seed, side=self.side, whole=self.compares_rows
        )
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        optimizer = make_optimizer(
            self.optimizer, self.trained(model), self.learning_rate, weight_decay=self.weight_decay
        )
        forget_loss, refusal_loss = self.forget_loss(model, data, run), language_model_loss(model)
        run.track(optimizer=optimizer, forget=forget, retain=retain)
        refusals = None
        if self.refusal_weight:
            # Of the same seed: the refusals of the very prompts that the forget loss sees.
            refusals = pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed, side="chosen")
            run.track(refusals=refusals)
        base = run.base if self.retain.compares else None
        gradients = GradientSum(model)
        for _ in range(run.start, self.outer_steps):
            model.train()
            training_point(optimizer)
            gradients.clear()
            losses = {
                self.forget_loss_name: self.take_forget(
                    gradients, self._attacked(forget_loss, model), model, next(forget)
                )
            }
            losses["retain loss"] = self.retain.take(gradients, 1.0, model, base, next(retain), self.micro_batch)
            if refusals is not None:
                losses["refusal loss"] = take_gradient(
                    gradients, self.refusal_weight, refusal_loss, next(refusals), self.micro_batch
                )
            gradients.give()
            optimizer.step()
            published_point(optimizer)
            model.train(False)
            yield losses

    def _attacked(self, loss: Loss, model: PreTrainedModel) -> Loss:
        """The loss under the latent adversary, where there is one."""
        if self.latent is None:
            return loss
        adversary = self.latent

        def under_attack(part: Batch) -> torch.Tensor:
            with adversary.perturbed(model, part):
                return loss(part)

        return under_attack
