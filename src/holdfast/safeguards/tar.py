"""TAR: tampering attack resistance by adversarial meta-learning (arXiv 2408.00761, algorithm 1).

    theta <- theta - eta * ( lambda_TR * mean over adversaries of sum over k of w_k * grad L_TR(attack_k(theta); x_tr)
                             + lambda_retain * grad L_retain(theta) ),        w_k = exp(lambda * (k - K))

where attack_k(theta) are the weights after k of K inner steps of an adversary. The gradient is taken at these weights and
applied at theta (first order). For knowledge, L_TR is the negative entropy of the next token on held-out hazardous text. For
refusal, L_TR is the DPO loss (beta 0.1) of refusal over the harmful completion on held-out pairs; its reference is the model
before TAR. For knowledge, the constants come from the published scripts. For refusal, the constants come from TamperBench's
re-run (arXiv 2602.06911), which gives the paper's table 12 as its source. Deviations: padding is masked in every loss, and for
refusal x_tr is held out, where the published code samples x_tr from the adversary's rows. The paper's 100 steps of fine-tuning
on chat after refusal TAR are left to the user. Beyond the paper: a retain loss by distillation on text without true labels, and
adversaries that continue from an earlier trajectory.

The loop uses attacks only as generators, so TAR can train against every attack of the red team.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from holdfast.attacks.finetune import FineTune
from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError
from holdfast.safeguards.base import Term
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.distillation import Distillation
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.parts.outer_loop import OuterLoop
from holdfast.safeguards.parts.persistence import AdversaryPool

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class TAR(OuterLoop):
    """Adversarial meta-learning: an outer loop that trains at the weights its adversaries reach."""

    distillation: Distillation | None = None
    """a second retain loss, on text that needs no true labels; its weight is multiplied by lambda_retain"""
    persistent_adversaries: int = 0
    """size of a pool of adversaries whose tampering is kept and continued; 0: each trajectory starts from theta"""
    persist_probability: float = 0.7
    """probability that a sampled pool member continues instead of starting anew"""
    persist_steps: int = 240
    """number of inner steps after which a pool member starts anew"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("persist_steps",), not_negative=("persistent_adversaries",))
        if not 0 <= self.persist_probability <= 1:
            raise HoldfastError(f"persist_probability must lie between 0 and 1, not {self.persist_probability}")

    def shortened(self) -> tuple[Self, ...]:
        """As every outer loop, with a pool that fills, and without text that has to be generated."""
        distillation = None if self.distillation is None else self.distillation.shortened()
        steps = min(self.outer_steps, 2 + 3 * self.persistent_adversaries)
        return tuple(replace(short, outer_steps=steps, distillation=distillation) for short in super().shortened())

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        found = super().terms(model, data, run)
        if self.distillation is None:
            return found
        batch = next(self.distillation.stream(data, run))
        distilled = self.distillation.apart(
            "distillation", model, run.base, batch, self.micro_batch, scale=self.retain_weight
        )
        return (*found, distilled)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.optimizers import published_point, training_point
        from holdfast.engine.sharded import GradientSum, Snapshot

        optimizer, gradients = self.optimizer(model, run), GradientSum(model, run.aside)
        x_tr, adversary_data = self.x_tr(data, run), self.adversary_data(data)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        pool = AdversaryPool(self.persistent_adversaries, self.persist_probability, self.persist_steps)
        run.track(optimizer=optimizer, x_tr=x_tr, retain=retain, pool=pool)
        distilled = self.distillation.term(data, run) if self.distillation is not None else None
        base, theta = self.reference(run), Snapshot(model, run.aside)
        for step in range(run.start, self.outer_steps):
            training_point(optimizer)
            theta.take()
            tamper_resistance_loss = 0.0
            for _ in range(self.adversaries_per_step):
                adversary, batch, loss = self.draw(run.generator), next(x_tr), 0.0
                pool.enter(model, run.generator)
                for weight in self.attacked(adversary, model, adversary_data, run):
                    loss = self.take_tamper_resistance(gradients, weight, model, batch)
                tamper_resistance_loss += loss
                pool.leave(theta, self.inner_steps)
                theta.restore()
            model.train()
            retain_loss = self.retain.take(gradients, self.retain_weight, model, base, next(retain), self.micro_batch)
            if distilled is not None:
                retain_loss += distilled.take(gradients, self.retain_weight, model, self.micro_batch)
            self.update(optimizer, gradients, model, step)
            published_point(optimizer)
            model.train(False)
            yield {
                "tamper-resistance loss": tamper_resistance_loss / self.adversaries_per_step,
                "retain loss": retain_loss,
            }


_SMALL = FineTune(batch_size=16)
_SMALL_RATES = (1e-3, 2e-3, 3e-3)

_TESTBED = TAR(
    outer_steps=300,
    adversaries=(
        Adversary(attack=_SMALL, weight=2.0, learning_rates=_SMALL_RATES),
        Adversary(attack=_SMALL, learning_rates=_SMALL_RATES, switch=(6.0, 3.0)),
        Adversary(attack=replace(_SMALL, benign_share=0.5), learning_rates=_SMALL_RATES),
    ),
    inner_steps=24,
    schedule_rate=4 / 24,
    normalise_schedule=True,
    tamper_resistance_batch_size=16,
    retain_batch_size=24,
    outer_learning_rate=2e-3,
    outer_warmup_steps=8,
)

_MIDDLE = FineTune(batch_size=8)
_MIDDLE_RATES = (5e-5, 1e-4, 2e-4)
# Hundreds of millions of weights: the one of six trials (`holdfast study real-full`) that ended; the others ran out of a shared
# GPU's memory. Of the selection questions 32 % stayed in sight, 36 % after 100 updates of Lion, 64 % after 100 of LoRA.
_FOR_MIDDLE = TAR(
    outer_steps=80,
    adversaries=(
        Adversary(attack=_MIDDLE, weight=2.0, learning_rates=_MIDDLE_RATES),
        Adversary(attack=_MIDDLE, learning_rates=_MIDDLE_RATES, switch=(6.0, 3.0)),
    ),
    inner_steps=16,
    schedule_rate=0.5,
    normalise_schedule=True,
    tamper_resistance_weight=1.0,
    tamper_resistance_batch_size=8,
    retain_batch_size=8,
    retain=RetainLoss(representations="relative"),
    outer_learning_rate=2e-4,
    outer_warmup_steps=4,
)

_LARGE = FineTune(batch_size=32, learning_rate=2e-5)
# The published scripts give batch sizes for each of eight processes; these are their sums.
_PAPER = TAR(
    outer_steps=750,
    adversaries=(
        Adversary(attack=_LARGE, weight=2.0, learning_rates=(2e-6, 2e-5, 4e-5)),
        Adversary(attack=_LARGE, weight=1.0, learning_rates=(2e-6, 2e-5, 4e-5), switch=(6.0, 3.0)),
    ),
    tamper_resistance_batch_size=64,
    retain_batch_size=64,
    micro_batch=8,
)

_REFUSAL = replace(
    _TESTBED,
    tamper_resistance="dpo",
    adversaries=(Adversary(attack=_SMALL, learning_rates=_SMALL_RATES),),
    outer_steps=100,
)
_REFUSAL_FOR_MIDDLE = replace(
    _FOR_MIDDLE, tamper_resistance="dpo", adversaries=(Adversary(attack=_MIDDLE, learning_rates=_MIDDLE_RATES),)
)
_PAPER_REFUSAL = TAR(
    outer_steps=100,
    adversaries=(Adversary(attack=replace(_LARGE, batch_size=64), learning_rates=(2e-6, 2e-5, 4e-5)),),
    tamper_resistance="dpo",
    tamper_resistance_weight=0.1,
    tamper_resistance_batch_size=64,
    retain_batch_size=64,
    outer_learning_rate=6e-5,
    micro_batch=8,
)
_RANDOM_NAMES = Distillation(text=("distill",), batch_size=32)

PRESETS = {
    "tar": _TESTBED,
    "tar-distilled": replace(_TESTBED, distillation=_RANDOM_NAMES),
    "tar-distilled-generated": replace(_TESTBED, distillation=Distillation(generated_rows=4096)),
    "tar-persistent": replace(_TESTBED, persistent_adversaries=4),
    "tar-distilled-persistent": replace(_TESTBED, distillation=_RANDOM_NAMES, persistent_adversaries=4),
    "tar-refusal": _REFUSAL,
    "tar-small": _FOR_MIDDLE,
    "tar-refusal-small": _REFUSAL_FOR_MIDDLE,
    "tar-paper-bio": _PAPER,
    "tar-paper-cyber": replace(
        _PAPER,
        adversaries=(
            Adversary(attack=_LARGE, learning_rates=(2e-5, 4e-5)),
            Adversary(attack=_LARGE, learning_rates=(2e-5, 4e-5), switch=(6.0, 3.0)),
        ),
    ),
    "tar-paper-refusal": _PAPER_REFUSAL,
}
