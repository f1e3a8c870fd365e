"""TAR: tampering attack resistance by adversarial meta-learning (arXiv 2408.00761, algorithm 1).

    theta <- theta - eta * ( lambda_TR * mean over adversaries of sum over k of w_k * grad L_TR(attack_k(theta); x_tr)
                             + lambda_retain * grad L_retain(theta) ),        w_k = exp(lambda * (k - K))

where attack_k(theta) are the weights after k of K inner steps of an adversary and the gradient is taken there and applied
at theta (first order). For knowledge L_TR is the negative entropy of the next token on held-out hazardous text; for refusal it
is the DPO loss (beta 0.1) of refusal over the harmful completion, held-out pairs against the model as the stage found it.
Constants are those of the published scripts; for refusal of TamperBench's re-run (arXiv 2602.06911), which gives the paper's
table 12 as its source. Deviations: padding is masked in every loss, and for refusal x_tr is held out, where the published code
draws it from the adversary's own rows. The paper's 100 steps of fine-tuning on chat after refusal TAR are left to the user.
Beyond the paper: a retain loss by distillation on text without true labels, and adversaries that go on from where they were.

The loop knows attacks only as generators, so whatever the red team can do, TAR can train against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import Optimizer, OptimizerName
from holdfast.safeguards.base import Safeguard
from holdfast.safeguards.distillation import Distillation
from holdfast.safeguards.objective import RetainLoss, check_settings
from holdfast.safeguards.pairs import PairBatch, Pairs, dpo
from holdfast.safeguards.persistence import AdversaryPool

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data, Stream
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum

TamperResistance = Literal["entropy", "cross-entropy", "clamped-cross-entropy", "inverse-cross-entropy", "dpo"]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """One entry of the mix: an attack, how often it is drawn, and what is drawn anew each time."""

    attack: Attack = FineTune()
    """any attack; its `max_steps` gives way to the safeguard's `inner_steps`"""
    weight: float = 1.0
    """drawn in proportion to this"""
    learning_rates: tuple[float, ...] = ()
    """the rate is drawn uniformly from these; empty: the attack's own"""
    switch: tuple[float, float] | None = None
    """retain-then-forget: the share of benign steps before the hazardous ones is drawn from Beta of these; None: as the
    attack says"""

    def __post_init__(self) -> None:
        for drawn, field in ((self.learning_rates, "learning_rate"), (self.switch, "benign_first")):
            if drawn and not hasattr(self.attack, field):
                raise HoldfastError(
                    f"{type(self.attack).__name__} has no {field} to be drawn anew; leave it to the attack as it stands"
                )

    def drawable(self) -> tuple[Attack, ...]:
        """The attack at each rate that may be drawn, with a share of benign steps first where one is drawn."""
        drawn: dict[str, Any] = {}
        if self.switch is not None:
            drawn["benign_first"] = self.switch[0] / sum(self.switch)
        rates: list[dict[str, Any]] = [{"learning_rate": rate} for rate in self.learning_rates] or [{}]
        return tuple(replace(self.attack, **drawn, **rate) for rate in rates)

    def draw(self, inner_steps: int, generator: torch.Generator) -> Attack:
        """This entry with its rate and switch drawn."""
        import torch

        drawn: dict[str, Any] = {}
        if self.learning_rates:
            chosen = int(torch.randint(len(self.learning_rates), (), generator=generator))
            drawn["learning_rate"] = self.learning_rates[chosen]
        if self.switch is not None:
            first, second = torch._standard_gamma(torch.tensor(self.switch), generator=generator)
            drawn["benign_first"] = float(first / (first + second))
        return replace(self.attack, max_steps=inner_steps, **drawn)


@dataclass(frozen=True, kw_only=True)
class TAR(Safeguard):
    """Adversarial meta-learning: an outer loop that trains at the weights its adversaries reach."""

    adversaries: tuple[Adversary, ...]
    """the mix that an adversary is drawn from"""
    adversaries_per_step: int = 1
    """trajectories in each outer step, whose tamper-resistance gradients are averaged"""
    inner_steps: int = 64
    """K, updates in a trajectory"""
    every: int = 4
    """the tamper-resistance gradient is taken after every so many inner steps"""
    schedule_rate: float = 0.0625
    """lambda of the exponential schedule exp(lambda (k - K))"""
    normalise_schedule: bool = False
    """scale the schedule's weights to sum to 1; the paper does not (its weights sum to 4.44)"""
    tamper_resistance: TamperResistance = "entropy"
    """L_TR: negative entropy, negated cross entropy (also clamped at log V), -log(1 - p), or DPO over preference rows"""
    dpo_beta: float = 0.1
    """inverse temperature of the DPO loss"""
    tamper_resistance_weight: float = 4.0
    """lambda_TR"""
    retain_weight: float = 1.0
    """lambda_retain"""
    tamper_resistance_batch_size: int = 8
    """rows of x_tr, one batch a trajectory"""
    retain_batch_size: int = 8
    """retain rows an outer step"""
    pooled: bool = False
    """adversaries and x_tr both draw from forget and forget_heldout together, instead of from one each"""
    retain: RetainLoss = RetainLoss()
    """the retain loss"""
    distillation: Distillation | None = None
    """a retain loss beside it, on text that needs no true labels; its weight is multiplied by lambda_retain"""
    persistent_adversaries: int = 0
    """size of a pool of adversaries whose tampering is kept and gone on with; 0: each starts from the weights at hand"""
    persist_probability: float = 0.7
    """chance of a drawn pool member to go on rather than to start anew"""
    persist_steps: int = 240
    """a pool member starts anew once it has tampered for so many inner steps"""
    alternate: bool = False
    """the two gradients are applied in turn, each by an optimizer of its own, instead of together"""
    outer_optimizer: OptimizerName = "schedule-free-adamw"
    """the outer optimizer's name"""
    outer_learning_rate: float = 2e-5
    """peak outer learning rate"""
    outer_warmup_steps: int = 32
    """outer steps of linear warmup"""
    outer_weight_decay: float = 0.0
    """decoupled weight decay"""
    micro_batch: int | None = None
    """rows that go through the model at once (gradient accumulation); None: the whole batch"""

    def __post_init__(self) -> None:
        if not self.adversaries:
            raise HoldfastError("TAR needs at least one adversary")
        if self.alternate and self.outer_optimizer == "schedule-free-adamw":
            raise HoldfastError(
                "alternate updates need two optimizers, and two schedule-free ones cannot share weights"
            )
        if not 1 <= self.every <= self.inner_steps:
            raise HoldfastError(f"every must lie between 1 and inner_steps ({self.inner_steps}), not {self.every}")
        check_settings(
            self,
            positive=(
                "outer_steps",
                "adversaries_per_step",
                "tamper_resistance_batch_size",
                "retain_batch_size",
                "micro_batch",
                "outer_learning_rate",
                "dpo_beta",
                "persist_steps",
            ),
            not_negative=(
                "tamper_resistance_weight",
                "retain_weight",
                "outer_warmup_steps",
                "outer_weight_decay",
                "persistent_adversaries",
            ),
        )
        if not 0 <= self.persist_probability <= 1:
            raise HoldfastError(f"persist_probability must lie between 0 and 1, not {self.persist_probability}")

    def trains_against(self) -> tuple[Attack, ...]:
        return tuple(attack for adversary in self.adversaries for attack in adversary.drawable())

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        from holdfast.engine.optimizers import published_point, schedule_factor, set_learning_rate, training_point
        from holdfast.engine.sharded import GradientSum, Snapshot

        hazard, held_out = self._roles()
        # Whatever hazardous rows an adversary asks for, the defender has but his own.
        adversary_data = data.renamed(hazard=hazard, hazard_ood=hazard, hazard_all=hazard, benign=("retain",))
        x_tr = self._held_out(data.renamed(x_tr=held_out), run)
        retain = data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1)
        optimizer = self._optimizer(model)
        retain_optimizer = self._optimizer(model) if self.alternate else optimizer
        pool = AdversaryPool(self.persistent_adversaries, self.persist_probability, self.persist_steps)
        run.track(optimizer=optimizer, x_tr=x_tr, retain=retain, pool=pool)
        if self.alternate:
            run.track(retain_optimizer=retain_optimizer)
        text = None
        if self.distillation is not None:
            text = self.distillation.stream(data, run)
            run.track(text=text)
        base = run.base if self.retain.compares or text is not None else None
        gradients = GradientSum(model)
        held_out_batches: Iterator[Batch | PairBatch] = x_tr

        def update(step: int, optimizer: Optimizer) -> None:
            gradients.give()
            factor = schedule_factor("linear-warmup", step, self.outer_steps, self.outer_warmup_steps)
            set_learning_rate(optimizer, self.outer_learning_rate * factor)
            optimizer.step()
            model.zero_grad(set_to_none=True)

        for step in range(run.start, self.outer_steps):
            training_point(optimizer)
            theta = Snapshot(model)
            tamper_resistance_loss = 0.0
            for _ in range(self.adversaries_per_step):
                adversary = self.draw(run.generator)
                pool.enter(model, run.generator)
                tamper_resistance_loss += self._walk(
                    adversary, model, adversary_data, next(held_out_batches), run.inner(), gradients
                )
                pool.leave(theta, self.inner_steps)
                theta.restore()
            model.train()
            if self.alternate:
                update(step, optimizer)
            retain_loss = self.retain.take(gradients, self.retain_weight, model, base, next(retain), self.micro_batch)
            if self.distillation is not None and text is not None and base is not None:
                retain_loss += self.distillation.weight * self.distillation.take(
                    gradients, self.retain_weight, model, base, next(text), self.micro_batch
                )
            update(step, retain_optimizer)
            published_point(optimizer)
            model.train(False)
            yield {
                "tamper-resistance loss": tamper_resistance_loss / self.adversaries_per_step,
                "retain loss": retain_loss,
            }

    def _walk(
        self,
        adversary: Attack,
        model: PreTrainedModel,
        data: Data,
        x_tr: Batch | PairBatch,
        run: Run,
        gradients: GradientSum,
    ) -> float:
        """One trajectory: let the adversary tamper, take the weighted gradient on the way; the loss at its end."""
        weights = self.schedule()
        loss = 0.0
        with closing(adversary.steps(model, data, run)) as trajectory:
            for k, _ in enumerate(trajectory, start=1):
                if k in weights:
                    gradients.clear()  # the adversary's own
                    loss = self._tamper_resistance(model, x_tr)
                    gradients.take(self.tamper_resistance_weight * weights[k] / self.adversaries_per_step)
        gradients.clear()
        return loss

    def _optimizer(self, model: PreTrainedModel) -> Optimizer:
        from holdfast.engine.optimizers import make_optimizer
        from holdfast.engine.sharded import trainable

        rate, decay = self.outer_learning_rate, self.outer_weight_decay
        return make_optimizer(self.outer_optimizer, trainable(model), rate, weight_decay=decay)

    def _held_out(self, data: Data, run: Run) -> Stream | Pairs:
        """Endless batches of x_tr."""
        if self.tamper_resistance == "dpo":
            return Pairs(data, "x_tr", self.tamper_resistance_batch_size, run.seed, run.initial)
        return data.stream("x_tr", batch_size=self.tamper_resistance_batch_size, seed=run.seed)

    def _tamper_resistance(self, model: PreTrainedModel, x_tr: Batch | PairBatch) -> float:
        total = 0.0
        for part in x_tr.split(self.micro_batch):
            loss = self.tamper_resistance_loss(model, part)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def tamper_resistance_loss(self, model: PreTrainedModel, part: Batch | PairBatch) -> torch.Tensor:
        """L_TR of a microbatch of x_tr at the attacked weights."""
        from holdfast.engine.losses import (
            clamped_cross_entropy,
            inverse_cross_entropy,
            negative_entropy,
            next_token_loss,
        )

        if isinstance(part, PairBatch):
            return dpo(model, part, self.dpo_beta)
        logits = model(input_ids=part.input_ids, use_cache=False).logits
        if self.tamper_resistance == "cross-entropy":
            return -next_token_loss(logits, part.labels, part.label_count)
        if self.tamper_resistance == "clamped-cross-entropy":
            return -clamped_cross_entropy(logits, part.labels, part.label_count)
        if self.tamper_resistance == "inverse-cross-entropy":
            return inverse_cross_entropy(logits, part.labels, part.label_count)
        return negative_entropy(logits, part.labels, part.label_count)

    def schedule(self) -> dict[int, float]:
        """Inner step k -> its weight exp(lambda (k - K)), for every `every`-th k from 1 to K."""
        import math

        weights = {
            k: math.exp(self.schedule_rate * (k - self.inner_steps))
            for k in range(self.every, self.inner_steps + 1, self.every)
        }
        total = sum(weights.values()) if self.normalise_schedule else 1.0
        return {k: weight / total for k, weight in weights.items()}

    def draw(self, generator: torch.Generator) -> Attack:
        """An adversary from the mix."""
        import torch

        shares = torch.tensor([adversary.weight for adversary in self.adversaries], dtype=torch.float64)
        entry = self.adversaries[int(torch.multinomial(shares, 1, generator=generator))]
        return entry.draw(self.inner_steps, generator)

    def _roles(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the adversaries draw from, and what x_tr is drawn from."""
        both = ("forget", "forget_heldout")
        return (both, both) if self.pooled else (("forget",), ("forget_heldout",))


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
    "tar-pooled": replace(_TESTBED, pooled=True),
    "tar-distilled": replace(_TESTBED, distillation=_RANDOM_NAMES),
    "tar-distilled-generated": replace(_TESTBED, distillation=Distillation(generated_rows=4096)),
    "tar-persistent": replace(_TESTBED, persistent_adversaries=4),
    "tar-distilled-persistent": replace(_TESTBED, distillation=_RANDOM_NAMES, persistent_adversaries=4),
    "tar-refusal": _REFUSAL,
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
