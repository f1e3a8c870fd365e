"""UNDO: shrinks and perturbs the weights of an unlearned model, then distils a teacher into these weights.

    theta <- (1 - alpha) * theta + alpha * beta * fresh initialisation           once, at the start
    loss = KL(teacher || theta) + w * negative mean entropy on labelled forget tokens

UNDO is a second stage: another safeguard has unlearned the starting model, and the teacher is that model (arXiv 2506.06278,
sections 3 and 4; alpha 0.2 to 0.8 and beta 0.1 on its synthetic tasks, alpha 0.25 without noise for 3,000 steps at 2e-5 on
WMDP). The preset `undo` is this method, on the retain rows. Deviations: the noise is a fresh initialisation of the
architecture, where the code has Xavier's uniform initialisation for matrices and none for vectors. The text is the retain rows,
where the synthetic tasks distil on hazardous text too. The number of steps is fixed, where the synthetic tasks stop near the
teacher's loss. The preset `undo-generated` is ours and goes further: the teacher is the *original* model, the text is generated
by the original model with the hazard filtered out, beta is 1, and hazardous rows are kept uncertain (w 0.3). All tensors are
shrunk, norms too. Ability follows the coverage of the text. At alpha near 1, UNDO is close to a data-free pretraining, and its
cost should be reported with the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError, Replaced
from holdfast.safeguards.base import Safeguard, Term
from holdfast.safeguards.parts.distillation import Distillation
from holdfast.safeguards.parts.objective import take_gradient

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class UNDO(Safeguard):
    """Shrinks and perturbs the weights, then distils a teacher into these weights."""

    rate_setting: ClassVar[str] = "learning_rate"

    outer_steps: int = 500
    """updates of the published weights"""
    shrink: float = 0.6
    """alpha, the share of the weights that is removed"""
    noise: float = 0.1
    """beta, weight of the fresh initialisation that replaces that share"""
    replaced: Replaced = "all"
    """weights that are shrunk: all; the linear maps of the blocks, with or without the input embeddings; the MLPs' maps alone"""
    teacher: Literal["unlearned", "original"] = "unlearned"
    """the teacher, where its predictions are learned: the model before this stage, or the model before any safeguard"""
    distillation: Distillation = Distillation(text=("retain",), batch_size=64)
    """the text of the distillation"""
    forget_weight: float = 0.0
    """w, weight of the uncertainty on hazardous rows"""
    forget_batch_size: int = 16
    """hazardous rows a step, from forget and forget_heldout together; not read where w is 0"""
    learning_rate: float = 3e-3
    """peak learning rate of AdamW with betas (0.9, 0.98), followed by a cosine decay"""
    warmup_steps: int = 20
    """steps of linear warmup"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        check_settings(
            self,
            positive=("outer_steps", "forget_batch_size", "learning_rate", "max_grad_norm", "micro_batch"),
            not_negative=("noise", "forget_weight", "warmup_steps", "weight_decay"),
        )
        if not 0 <= self.shrink <= 1:
            raise HoldfastError(f"shrink must lie between 0 and 1, not {self.shrink}")

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        teacher = self._teacher(run)
        text = next(self.distillation.stream(data, run))
        kept = self.distillation.apart("distillation", model, teacher, text, self.micro_batch)
        if not self.forget_weight:
            return (kept,)
        pooled = data.renamed(forget=("forget", "forget_heldout"))
        hazardous = next(pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed))
        forgotten = Term(
            name="forget loss",
            setting="forget_weight",
            weight=self.forget_weight,
            keeps=False,
            take=lambda gradients: take_gradient(
                gradients, 1.0, lambda part: uncertainty(model, part), hazardous, self.micro_batch
            ),
        )
        return kept, forgotten

    def shortened(self) -> tuple[Self, ...]:
        return (replace(self, outer_steps=min(self.outer_steps, 2), distillation=self.distillation.shortened()),)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        import torch

        from holdfast.engine.fresh import shrink_and_perturb
        from holdfast.engine.optimizers import make_optimizer, schedule_factor, set_learning_rate
        from holdfast.engine.sharded import GradientSum, trainable

        text = self.distillation.stream(data, run)
        pooled = data.renamed(forget=("forget", "forget_heldout"))
        forget = pooled.stream("forget", batch_size=self.forget_batch_size, seed=run.seed)
        weights = trainable(model)
        optimizer = make_optimizer(
            "adamw", weights, self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.98)
        )
        run.track(optimizer=optimizer, text=text, forget=forget)
        teacher = self._teacher(run)
        if run.start == 0:
            shrink_and_perturb(model, self.shrink, self.noise, run.seed, self.replaced)

        gradients = GradientSum(model)
        for step in range(run.start, self.outer_steps):
            model.train()
            gradients.clear()
            losses = {
                "retain loss": self.distillation.take(gradients, 1.0, model, teacher, next(text), self.micro_batch)
            }
            if self.forget_weight:
                losses["forget loss"] = take_gradient(
                    gradients,
                    self.forget_weight,
                    lambda part: uncertainty(model, part),
                    next(forget),
                    self.micro_batch,
                )
            gradients.give()
            torch.nn.utils.clip_grad_norm_(weights, self.max_grad_norm)
            factor = schedule_factor("warmup-cosine", step, self.outer_steps, self.warmup_steps)
            set_learning_rate(optimizer, self.learning_rate * factor)
            optimizer.step()
            gradients.clear()
            model.train(False)
            yield losses

    def _teacher(self, run: Run) -> PreTrainedModel | None:
        if not self.distillation.compares:
            return None
        return run.initial if self.teacher == "unlearned" else run.base


def uncertainty(model: PreTrainedModel, part: Batch) -> torch.Tensor:
    """The negative mean entropy of the next token on a microbatch of hazardous rows."""
    from holdfast.engine.losses import negative_entropy
    from holdfast.engine.predictions import predictions

    logits = predictions(model, part.input_ids)
    return negative_entropy(logits, part.labels, part.label_count)


_GENERATED = UNDO(
    shrink=0.7,
    noise=1.0,
    teacher="original",
    distillation=Distillation(text=("retain", "generated"), generated_rows=12288, batch_size=64),
    forget_weight=0.3,
)

PRESETS = {
    "undo": UNDO(),
    "undo-generated": _GENERATED,
    "undo-generated-small": UNDO(
        outer_steps=300,
        shrink=0.3,
        noise=0.0,
        teacher="original",
        distillation=Distillation(text=("retain", "generated"), generated_rows=3072, batch_size=32),
        forget_weight=0.3,
        forget_batch_size=8,
        learning_rate=3e-4,
        micro_batch=16,
    ),
    "undo-large": UNDO(
        outer_steps=3000,
        shrink=0.25,
        noise=0.0,
        learning_rate=2e-5,
        warmup_steps=50,
        distillation=Distillation(text=("retain",), batch_size=110),
        micro_batch=10,
    ),
}
