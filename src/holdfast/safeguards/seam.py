"""SEAM, self-destructive models: couples hazardous training with benign ability, so that a step towards the one costs the other.

    loss = retain(theta) + v * LM(refusals) - a * log(1 + mean over layers of CE(harmful completion; h_layer))
           + b * cos(g, g'),     g = grad LM(harmful completions), g' = grad LM(retain rows), over all weights

A cosine below 0 means that a step that learns the hazard unlearns retain rows. Its gradient is estimated without second
derivatives from gradients at two nearby points, where u and u' are g and g' at length 1 and c is their cosine:

    grad cos = (grad LM(harmful; theta + r (u' - c u)) - g) / (r |g|) + (grad LM(retain; theta + r (u - c u')) - g') / (r |g'|)

The source is arXiv 2505.12186, as its code writes it: a 1, v 1, b 0.01, r 1e-3, AdamW at 2e-5 with a cosine, one pass over
8,000 rows in batches of 4 a device. Constants of `seam` were chosen on the testbed. Deviations: the retain loss is added, since
the source keeps what is benign by the refusals' loss alone and has no such loss on rows without refusals. Labels mark the
completion, where the source marks the tokens in which the paired texts differ. The last hidden state is not normed a second time
and counts once. The rate is constant. The passes of the estimate are taken in the precision of the weights, and bfloat16 weights
refuse a radius that is lost in their rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import OptimizerName
from holdfast.safeguards.base import Safeguard, Term
from holdfast.safeguards.parts.objective import RetainLoss, language_model_loss, take_gradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum


@dataclass(frozen=True, kw_only=True)
class SEAM(Safeguard):
    """Turns the gradient of hazardous text against the gradient of benign text."""

    rate_setting: ClassVar[str] = "learning_rate"

    learning_rate: float = 1e-3
    """constant learning rate"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    forget_weight: float = 1.0
    """a, weight of the logarithmic ascent on harmful completions"""
    coupling_weight: float = 0.01
    """b, weight of the cosine of the two gradients"""
    radius: float = 1e-3
    """r, distance over all weights at which the gradients are compared"""
    refusal_weight: float = 0.0
    """v, weight of the LM loss on the refusals of the forget rows, which are then preference rows"""
    forget_batch_size: int = 32
    """hazardous rows a step, from forget and forget_heldout together"""
    retain_batch_size: int = 32
    """retain rows a step, for the retain loss and the cosine"""
    retain: RetainLoss = RetainLoss()
    """the retain loss"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=(
                "outer_steps",
                "learning_rate",
                "radius",
                "forget_batch_size",
                "retain_batch_size",
                "micro_batch",
            ),
            not_negative=("weight_decay", "forget_weight", "coupling_weight", "refusal_weight"),
        )

    @property
    def needs_pairs(self) -> bool:
        return self.refusal_weight > 0

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        pooled = data.renamed(forget=("forget", "forget_heldout"))
        hazardous = next(pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed))
        benign = next(data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1))
        found = [
            Term(
                name="forget loss",
                setting="forget_weight",
                weight=self.forget_weight,
                keeps=False,
                take=lambda gradients: self._ascend(gradients, 1.0, model, hazardous),
            ),
            Term(
                name="coupling",
                setting="coupling_weight",
                weight=self.coupling_weight,
                keeps=False,
                take=lambda gradients: self._couple(gradients, 1.0, model, hazardous, benign),
            ),
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
        return self.retain.against_sinks("retain")

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.sharded import GradientSum, trainable

        pooled = data.renamed(forget=("forget", "forget_heldout"))
        forget = pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        optimizer = make_optimizer(self.optimizer, trainable(model), self.learning_rate, weight_decay=self.weight_decay)
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
            hazardous, benign = next(forget), next(retain)
            losses = {
                "forget loss": self._ascend(gradients, self.forget_weight, model, hazardous),
                "coupling": self._couple(gradients, self.coupling_weight, model, hazardous, benign),
                "retain loss": self.retain.take(gradients, 1.0, model, base, benign, self.micro_batch),
            }
            if refusals is not None:
                losses["refusal loss"] = take_gradient(
                    gradients, self.refusal_weight, language_model_loss(model), next(refusals), self.micro_batch
                )
            gradients.give()
            optimizer.step()
            published_point(optimizer)
            model.train(False)
            yield losses

    def _ascend(self, gradients: GradientSum, weight: float, model: PreTrainedModel, batch: Batch) -> float:
        """Add `weight` times the gradient of the ascent; return its loss."""
        import math

        import torch

        from holdfast.engine.lens import lens
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.ranks import means

        total = 0.0
        for part in batch.split(self.micro_batch):
            logits, hidden, end = lens(model, part.input_ids)
            losses = [next_token_loss(end(state), part.labels, part.label_count) for state in hidden[:-1]]
            loss = torch.stack([*losses, next_token_loss(logits, part.labels, part.label_count)]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        [total] = means([total])
        gradients.take(-weight / (1 + total))  # the slope of -log(1 + loss) of the whole batch
        return -math.log1p(total)

    def _couple(
        self, gradients: GradientSum, weight: float, model: PreTrainedModel, hazardous: Batch, benign: Batch
    ) -> float:
        """Add `weight` times the estimated gradient of the cosine; return the cosine.

        Raises:
            HoldfastError: the weights are bfloat16, and the two points are nearer than their rounding tells apart.
        """
        import torch

        from holdfast.engine.mixed import exact
        from holdfast.engine.rounding import shift
        from holdfast.engine.sharded import Snapshot, inner_product, local, trainable

        weights, loss = trainable(model), language_model_loss(model)
        if weights[0].dtype == torch.bfloat16:
            held = [local(p.detach()) for p in weights]
            least = _LEAST * inner_product(weights, held, held) ** 0.5
            if self.radius < least:
                raise HoldfastError(
                    f"gradients at points {self.radius:g} apart differ by rounding alone in bfloat16 weights; "
                    f"set radius to {least:.2g} or more, or take --precision mixed"
                )
        directions, lengths = list[list[torch.Tensor]](), list[float]()

        def climb(batch: Batch) -> None:
            with exact(model):  # rounded products would drown the difference of two gradients
                for part in batch.split(self.micro_batch):
                    loss(part).backward()  # type: ignore[no-untyped-call]

        for batch in (hazardous, benign):
            climb(batch)
            slope = [torch.zeros_like(local(p)) if p.grad is None else local(p.grad).clone() for p in weights]
            # At a point without slope there is no direction, and nothing to turn.
            length = max(inner_product(weights, slope, slope) ** 0.5, 1e-12)
            gradients.take(-weight / (self.radius * length))
            torch._foreach_div_(slope, length)
            directions.append(slope)
            lengths.append(length)
        cosine = inner_product(weights, *directions)
        origin = Snapshot(model)
        for batch, length, here, other in zip(
            (hazardous, benign), lengths, directions, reversed(directions), strict=True
        ):
            away = [self.radius * (ahead - cosine * own) for ahead, own in zip(other, here, strict=True)]
            shift([local(p.detach()) for p in weights], away)
            climb(batch)
            gradients.take(weight / (self.radius * length))
            origin.restore()
        return cosine


_LEAST = 2**-11
"""share of the weights' length that two points lie apart at least where weights are bfloat16, which rounds by up to 2^-9"""

_TESTBED = SEAM(forget_weight=3.0, coupling_weight=0.1, radius=0.1)

PRESETS = {
    "seam": _TESTBED,
    "seam-refusal": replace(_TESTBED, refusal_weight=1.0),
    "seam-large": SEAM(
        outer_steps=1000, learning_rate=2e-5, refusal_weight=1.0, forget_batch_size=8, retain_batch_size=8
    ),
}
