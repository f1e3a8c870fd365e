"""The settings and the parts of an outer loop that trains at the weights its adversaries reach: TAR, MLAC-AR, SOPHON-AR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from holdfast.attacks.finetune import FineTune
from holdfast.core.presets import added
from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import Optimizer, OptimizerName
from holdfast.safeguards.base import Safeguard, Term
from holdfast.safeguards.parts.adversary import Adversary, draw
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.parts.outer_terms import TamperResistance, step_weights, tamper_resistance_loss
from holdfast.safeguards.parts.pairs import PairBatch, Pairs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.attacks.base import Attack
    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run, Stateful
    from holdfast.engine.sharded import GradientSum

    class Batches(Stateful, Protocol):
        """Endless batches of rows or of preference pairs."""

        def __next__(self) -> Batch | PairBatch: ...


FORGET_AND_HELDOUT = ("forget", "forget_heldout")


@dataclass(frozen=True, kw_only=True)
class OuterLoop(Safeguard):
    """Base of the safeguards with an inner and an outer loop; a subclass gives the loop itself, `steps`."""

    rate_setting: ClassVar[str] = "outer_learning_rate"
    outer_state: ClassVar[bool] = True
    adversary_roles: ClassVar[tuple[str, ...]] = ("forget",)
    """the defender's rows that the adversaries train on"""
    x_tr_roles: ClassVar[tuple[str, ...]] = ("forget_heldout",)
    """the defender's rows that x_tr is sampled from"""

    adversaries: tuple[Adversary, ...]
    """the mix that the adversary of each trajectory is sampled from"""
    adversaries_per_step: int = 1
    """trajectories in each outer step, whose tamper-resistance gradients are averaged"""
    inner_steps: int = 64
    """K, updates in a trajectory"""
    every: int = 4
    """number of inner steps between two tamper-resistance gradients"""
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
    """rows of x_tr in a trajectory's one batch"""
    retain_batch_size: int = 8
    """retain rows an outer step"""
    retain: RetainLoss = RetainLoss()
    """the retain loss"""
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
    lora_rank: int = added(0)
    """0: all weights are trained; otherwise the rank of LoRA beside every linear map. Outer loop and adversaries then train the
    factors alone, whichever rank an adversary asks for"""
    lora_alpha: float = added(32.0)
    """LoRA's scale is alpha / rank"""

    def __post_init__(self) -> None:
        if not self.adversaries:
            raise HoldfastError(f"{type(self).__name__} needs at least one adversary")
        if self.lora_rank and not all(isinstance(adversary.attack, FineTune) for adversary in self.adversaries):
            raise HoldfastError(
                "with lora_rank the adversaries train LoRA's factors alone, so each has to fine-tune; leave lora_rank out, or "
                "take other adversaries"
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
                "lora_alpha",
            ),
            not_negative=(
                "tamper_resistance_weight",
                "retain_weight",
                "outer_warmup_steps",
                "outer_weight_decay",
                "lora_rank",
            ),
        )

    def prepare(self, model: PreTrainedModel) -> None:
        """Insert LoRA with peft, whose factors are then the only trainable weights."""
        from holdfast.engine.low_rank import insert_adapters

        if self.lora_rank:
            insert_adapters(model, self.lora_rank, self.lora_alpha, dropout=0.0)

    def trains_against(self) -> tuple[Attack, ...]:
        return tuple(attack for adversary in self.adversaries for attack in adversary.at_each_rate())

    def shortened(self) -> tuple[Self, ...]:
        """Short trajectories of one adversary of the mix after the other."""
        updates = min(self.inner_steps, 2)
        return tuple(
            replace(
                self,
                outer_steps=min(self.outer_steps, 2),
                adversaries=(replace(adversary, attack=short),),
                adversaries_per_step=1,
                inner_steps=updates,
                every=updates,
            )
            for adversary in self.adversaries
            for short in adversary.attack.shortened()
        )

    @property
    def on_one_device(self) -> str:
        return next(filter(None, (attack.on_one_device for attack in self.trains_against())), "")

    def draw(self, generator: torch.Generator) -> Attack:
        """Sample an adversary from the mix."""
        return draw(self.adversaries, self.inner_steps, generator)

    @property
    def needs_pairs(self) -> bool:
        return self.tamper_resistance == "dpo"

    def schedule(self) -> dict[int, float]:
        """Inner step k -> its weight w_k, for the steps at which the tamper-resistance gradient is taken."""
        return step_weights(self.inner_steps, self.every, self.schedule_rate, self.normalise_schedule)

    def adversary_data(self, data: Data) -> Data:
        """The rows of the adversaries: the defender has no others, whichever hazardous rows an attack names."""
        hazard = self.adversary_roles
        return data.renamed(hazard=hazard, hazard_ood=hazard, hazard_all=hazard, benign=("retain",))

    def x_tr(self, data: Data, run: Run) -> Batches:
        """Endless batches of x_tr."""
        renamed = data.renamed(x_tr=self.x_tr_roles)
        if self.tamper_resistance == "dpo":
            return Pairs(renamed, "x_tr", self.tamper_resistance_batch_size, run.seed, run.initial)
        return renamed.stream("x_tr", batch_size=self.tamper_resistance_batch_size, seed=run.seed)

    def reference(self, run: Run) -> PreTrainedModel | None:
        """The original model, where the retain loss compares with it; aside, unless an adversary reads it too."""
        if not self.retain.compares:
            return None
        return run.base if any(attack.uses_base for attack in self.trains_against()) else run.base_aside

    def optimizer(self, model: PreTrainedModel, run: Run) -> Optimizer:
        """A fresh outer optimizer over the trainable weights."""
        from holdfast.engine.optimizers import make_optimizer
        from holdfast.engine.sharded import trainable

        rate, decay = self.outer_learning_rate, self.outer_weight_decay
        return make_optimizer(self.outer_optimizer, trainable(model), rate, weight_decay=decay, aside=run.aside)

    def terms(self, model: PreTrainedModel, data: Data, run: Run) -> tuple[Term, ...]:
        from holdfast.engine.run import Run as Fresh
        from holdfast.engine.sharded import Snapshot

        adversary, rows = self.draw(run.generator), self.adversary_data(data)
        batch, drawn = next(self.x_tr(data, run)), run.generator.get_state()
        alone = replace(self, tamper_resistance_weight=1.0, adversaries_per_step=1)

        def resist(gradients: GradientSum) -> float:
            theta, loss, same = Snapshot(model), 0.0, Fresh(run.seed, lambda: run.base)
            same.generator.set_state(drawn)
            for weight in self.attacked(adversary, model, rows, same):
                loss = alone.take_tamper_resistance(gradients, weight, model, batch)
            theta.restore()
            return loss

        resistance = Term(
            name="tamper-resistance loss",
            setting="tamper_resistance_weight",
            weight=self.tamper_resistance_weight,
            keeps=False,
            take=resist,
        )
        benign = next(data.stream("retain", batch_size=self.retain_batch_size, seed=run.seed + 1))
        base = run.base if self.retain.compares else None
        return (
            resistance,
            *self.retain.terms("retain", model, base, benign, self.micro_batch, scale=self.retain_weight),
        )

    def against_sinks(self) -> Mapping[str, Any]:
        return self.retain.against_sinks("retain")

    def attacked(self, adversary: Attack, model: PreTrainedModel, data: Data, run: Run) -> Iterator[float]:
        """Run the inner loop; yield w_k, with the model at theta_k, wherever the tamper-resistance gradient is to be taken."""
        from holdfast.engine.profiling import recorded
        from holdfast.engine.sharded import clear_gradients

        weights = self.schedule()
        with closing(adversary.steps(model, data, run.inner())) as trajectory:
            for k, _ in enumerate(recorded("adversary", trajectory), start=1):
                if k in weights:
                    clear_gradients(model.parameters())  # the adversary's
                    yield weights[k]
        clear_gradients(model.parameters())

    def take_tamper_resistance(
        self, gradients: GradientSum, weight: float, model: PreTrainedModel, x_tr: Batch | PairBatch
    ) -> float:
        """Add lambda_TR * `weight` times the gradient of L_TR, averaged over adversaries, to `gradients`; return L_TR."""
        from torch.profiler import record_function

        total, parts = 0.0, [*x_tr.split(self.micro_batch)]
        gradients.expect(len(parts))
        with record_function("tamper resistance"):
            for part in parts:
                loss = tamper_resistance_loss(self.tamper_resistance, model, part, self.dpo_beta)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            gradients.take(self.tamper_resistance_weight * weight / self.adversaries_per_step)
        return total

    def update(self, optimizer: Optimizer, gradients: GradientSum, model: PreTrainedModel, step: int) -> None:
        """Take outer step `step` along the summed gradients."""
        from torch.profiler import record_function

        from holdfast.engine.optimizers import schedule_factor, set_learning_rate
        from holdfast.engine.sharded import clear_gradients

        gradients.give()
        factor = schedule_factor("linear-warmup", step, self.outer_steps, self.outer_warmup_steps)
        set_learning_rate(optimizer, self.outer_learning_rate * factor)
        with record_function("outer update"):
            optimizer.step()
        clear_gradients(model.parameters())
