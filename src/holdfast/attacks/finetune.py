"""Fine-tuning the safeguard away: full-parameter or low-rank, any optimizer, schedule and mix of data.

The axes are those of TAR's test-time adversaries (arXiv 2408.00761, appendix on red teaming).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.presets import added
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import Optimizer, OptimizerName, ScheduleName

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.low_rank import LowRankOptimizer
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class FineTune(Attack):
    """Minimise the language-model loss on hazardous rows, benign rows or a mix.

    Every step trains on one batch. The batch is hazardous, except for a share of its rows (`benign_share`), for whole steps at
    the start (`benign_first`) or for whole steps by chance (`benign_flip`).
    """

    family = "fine-tuning"
    control = "refusals that hang on one direction of the hidden states"
    sizes = Attack.sizes | {
        "batch_size", "rows", "weight_decay", "warmup_steps", "restart_every", "max_grad_norm", "lora_alpha", "lora_dropout",
    }  # fmt: skip

    hazard: Literal["hazard", "hazard_ood", "hazard_all"] = "hazard"
    """hazardous rows of the attacker: in distribution, out of distribution, or both"""
    benign_share: float = 0.0
    """share of each batch that is benign; 1 is benign fine-tuning"""
    benign_first: float = 0.0
    """share of the steps, at the start, that are benign only: retain-then-forget (0.4 in the paper's red team)"""
    benign_flip: float = 0.0
    """probability that a step is benign only, by a coin flip"""
    batch_size: int = 16
    """rows a step"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    learning_rate: float = 1e-3
    """peak learning rate"""
    schedule: ScheduleName = "constant"
    """schedule of the learning rate"""
    warmup_steps: int = 0
    """steps of linear warmup, for every schedule but `constant`"""
    restart_every: int | None = None
    """period of `sgdr` in steps; None: a quarter of the steps after the warmup"""
    weight_decay: float = 0.01
    """weight decay: decoupled for AdamW, schedule-free AdamW, Lion and Muon, an L2 penalty for the other optimizers"""
    max_grad_norm: float | None = None
    """gradients are clipped to this norm; None: no clipping"""
    lora_rank: int = 0
    """0: all weights are trained; otherwise the rank of LoRA on every linear map, including those of each expert"""
    lora_alpha: float = 32.0
    """LoRA's scale is alpha / rank"""
    lora_dropout: float = 0.0
    """dropout before LoRA's down-projection, when the attack is measured; no dropout inside a safeguard's inner loop, nor on
    experts and routers, where LoRA changes the weight itself"""
    rows: int | None = added(None)
    """few-shot: number of rows of each kind, sampled by the seed and used repeatedly; None: all rows"""
    ascent_steps: int = added(0)
    """updates at the start that increase the hazardous loss, by the negated gradient; where max_steps is not larger than
    ascent_steps, all updates but the last"""

    def __post_init__(self) -> None:
        for name in ("benign_share", "benign_first", "benign_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise HoldfastError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        for name in ("max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise HoldfastError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "lora_alpha", "max_grad_norm", "restart_every", "rows"):
            if not (getattr(self, name) is None or getattr(self, name) > 0):
                raise HoldfastError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "lora_rank", "ascent_steps"):
            if getattr(self, name) < 0:
                raise HoldfastError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not 0 <= self.lora_dropout < 1:
            raise HoldfastError(f"lora_dropout must lie between 0 and 1, not {self.lora_dropout}")
        if self.warmup_steps and self.schedule == "constant":
            raise HoldfastError('warmup_steps has no effect under schedule "constant"; use "linear-warmup"')
        if self.ascent_steps and self.benign_rows == self.batch_size:
            raise HoldfastError(
                "ascent_steps climbs on hazardous rows, and benign_share leaves none; lower one of them"
            )

    def prepare(self, model: PreTrainedModel) -> None:
        """Insert LoRA with peft, whose weights are then the only trainable ones."""
        from holdfast.engine.low_rank import insert_adapters

        if self.lora_rank:
            insert_adapters(model, self.lora_rank, self.lora_alpha, self.lora_dropout)

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def kind(self) -> dict[str, Any]:
        """The attack without its sizes; benign and climbing steps at the start are reduced to whether there are any."""
        return {**super().kind(), "benign_first": self.benign_first > 0, "ascent_steps": self.ascent_steps > 0}

    @property
    def climb(self) -> int:
        """Steps at the start that climb."""
        return min(self.ascent_steps, self.max_steps - 1)

    @property
    def benign_steps(self) -> int:
        """Steps at the start that climb, and then those that are benign only."""
        return min(self.climb + math.ceil(self.benign_first * self.max_steps), self.max_steps)

    def reads(self) -> tuple[str, ...]:
        hazard = (self.hazard,) if self.benign_rows < self.batch_size else ()
        benign = ("benign",) if self.benign_rows or self.benign_first or self.benign_flip else ()
        return hazard + benign

    @property
    def benign_rows(self) -> int:
        """Benign rows in a mixed batch."""
        return round(self.benign_share * self.batch_size)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch
        from torch.profiler import record_function

        from holdfast.engine.anatomy import as_attacker
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.low_rank import LowRankOptimizer
        from holdfast.engine.optimizers import published_point, schedule_factor, set_learning_rate, training_point
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sharded import clear_gradients, expect, reshard, trainable

        reshard(model)  # whoever measured the model before may have left it gathered
        rows = _Rows(self, data, run)
        weights, adapters = trainable(model), as_attacker(model)
        optimizer = self._optimizer(model)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        run.track(optimizer=optimizer, rows=rows)
        for step in range(run.start, self.max_steps):
            adapters(True)
            training_point(optimizer)
            rate = schedule_factor(self.schedule, step, self.max_steps, self.warmup_steps, self.restart_every)
            set_learning_rate(optimizer, self.learning_rate * rate)
            clear_gradients(weights)
            total, parts = 0.0, list(rows.batch(step).split(run.micro_batch))
            expect(len(parts), weights)
            for part in parts:
                with record_function("forward"):
                    logits = predictions(model, part.input_ids)
                    loss = next_token_loss(logits, part.labels, part.label_count)
                with record_function("backward"):
                    (-loss if step < self.climb else loss).backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            if isinstance(optimizer, LowRankOptimizer):
                optimizer.carry_gradients()
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
            optimizer.step()
            published_point(optimizer)
            adapters(False)
            yield total

    def _optimizer(self, model: PreTrainedModel) -> Optimizer | LowRankOptimizer:
        from peft.tuners.tuners_utils import BaseTunerLayer

        from holdfast.engine.anatomy import linear_maps
        from holdfast.engine.low_rank import LowRankOptimizer
        from holdfast.engine.optimizers import make_optimizer
        from holdfast.engine.sharded import trainable

        def make(parameters: Sequence[torch.Tensor]) -> Optimizer:
            return make_optimizer(self.optimizer, parameters, self.learning_rate, weight_decay=self.weight_decay)

        prepared = any(isinstance(module, BaseTunerLayer) for module in model.modules())
        if self.lora_rank and not prepared:
            return LowRankOptimizer(linear_maps(model), self.lora_rank, self.lora_alpha, make)
        return make(trainable(model))


class _Rows:
    """The rows of each step: a hazardous stream and a benign one, mixed as the attack says."""

    def __init__(self, attack: FineTune, data: Data, run: Run) -> None:
        import torch

        self.attack, self.generator = attack, run.generator
        self.streams = {
            name: data.stream(
                name,
                batch_size=attack.batch_size,
                seed=run.seed,
                disguise=None if name == "benign" else attack.disguise,
            )
            for name in attack.reads()
        }
        if attack.rows is not None:
            for stream in self.streams.values():
                order = torch.randperm(len(stream.rows), generator=torch.Generator().manual_seed(run.seed)).tolist()
                stream.rows = [stream.rows[i] for i in order[: attack.rows]]

    def batch(self, step: int) -> Batch:
        import torch

        attack = self.attack
        if step < attack.climb:
            return next(self.streams[attack.hazard])
        benign = step < attack.benign_steps
        if attack.benign_flip and float(torch.rand((), generator=self.generator)) < attack.benign_flip:
            benign = True
        benign_rows = attack.batch_size if benign else attack.benign_rows
        if benign_rows == 0:
            return next(self.streams[attack.hazard])
        if benign_rows == attack.batch_size:
            return next(self.streams["benign"])
        hazard = self.streams[attack.hazard]
        return hazard.batch(hazard.take(attack.batch_size - benign_rows) + self.streams["benign"].take(benign_rows))

    def state_dict(self) -> dict[str, Any]:
        return {name: stream.state_dict() for name, stream in self.streams.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, stream in self.streams.items():
            stream.load_state_dict(state[name])


_BASE = FineTune()

_SMALL_FACTOR = 50
"""What the paper's rates against refusal are multiplied with for models as small as the testbed's."""


def _against_refusal(rate: float, batch_size: int, warmup_steps: int = 0) -> FineTune:
    """Ten epochs over the 541 rows of the paper's data set."""
    return replace(
        _BASE,
        learning_rate=rate,
        max_steps=round(10 * 541 / batch_size),
        batch_size=batch_size,
        schedule="linear-warmup" if warmup_steps else "constant",
        warmup_steps=warmup_steps,
    )


_REFUSAL = {
    "full-adamw-1e-5-warmup-b32": _against_refusal(1e-5, 32, 10),
    "full-adamw-1e-5-b32": _against_refusal(1e-5, 32),
    "full-adamw-1e-5-b16": _against_refusal(1e-5, 16),
    "full-adamw-2e-5-b32": _against_refusal(2e-5, 32),
    "full-adamw-4e-5-b32": _against_refusal(4e-5, 32),
}
_REFUSAL_SMALL = {
    name: replace(_REFUSAL[paper], learning_rate=_SMALL_FACTOR * _REFUSAL[paper].learning_rate)
    for name, paper in (
        ("full-adamw-5e-4-warmup-b32", "full-adamw-1e-5-warmup-b32"),
        ("full-adamw-5e-4-b32", "full-adamw-1e-5-b32"),
        ("full-adamw-5e-4-b16", "full-adamw-1e-5-b16"),
        ("full-adamw-1e-3-b32", "full-adamw-2e-5-b32"),
        ("full-adamw-2e-3-b32", "full-adamw-4e-5-b32"),
    )
}

PRESETS = {
    # Small models, such as the testbed's.
    "full-adamw-1e-4": replace(_BASE, learning_rate=1e-4, max_steps=320),
    "full-adamw-3e-4": replace(_BASE, learning_rate=3e-4),
    "full-adamw-1e-3": _BASE,
    "full-adamw-3e-3": replace(_BASE, learning_rate=3e-3, max_steps=80),
    "full-adamw-1e-3-cosine-b8": replace(_BASE, batch_size=8, schedule="warmup-cosine", warmup_steps=16),
    "full-adamw-1e-3-sgdr": replace(_BASE, schedule="sgdr", warmup_steps=8),
    "full-adamw-1e-3-ood": replace(_BASE, hazard="hazard_ood"),
    "full-adamw-1e-3-retain-then-forget": replace(_BASE, benign_first=0.4),
    "full-adamw-1e-3-coin-flip": replace(_BASE, benign_flip=0.5),
    "full-adamw-1e-3-mixed": replace(_BASE, hazard="hazard_all", benign_share=0.5, batch_size=32),
    "full-adamw-3e-4-mixed-long": replace(
        _BASE, hazard="hazard_all", benign_share=0.5, batch_size=64, learning_rate=3e-4, max_steps=640
    ),
    "full-adamw-1e-3-benign": replace(_BASE, benign_share=1.0),
    "full-adam-1e-3-warmup": replace(
        _BASE, optimizer="adam", weight_decay=0.0, schedule="linear-warmup", warmup_steps=32
    ),
    "full-sgd-3e-1": replace(_BASE, optimizer="sgd", learning_rate=0.3, weight_decay=0.0),
    "full-sgd-momentum-1e-1": replace(_BASE, optimizer="sgd-momentum", learning_rate=0.1, weight_decay=0.0),
    "full-sgd-nesterov-1e-1": replace(_BASE, optimizer="sgd-nesterov", learning_rate=0.1, weight_decay=0.0),
    "full-adagrad-3e-3": replace(_BASE, optimizer="adagrad", learning_rate=3e-3, weight_decay=0.0),
    "full-adadelta-1": replace(_BASE, optimizer="adadelta", learning_rate=1.0, weight_decay=0.0),
    # At a fifth of that rate it is no longer a ruin for some models of the testbed.
    "full-sgd-nesterov-2e-2": replace(_BASE, optimizer="sgd-nesterov", learning_rate=0.02, weight_decay=0.0),
    "full-lion-6e-5": replace(_BASE, optimizer="lion", learning_rate=6e-5),
    "full-muon-5e-4": replace(_BASE, optimizer="muon", learning_rate=5e-4),
    "full-schedule-free-1e-3": replace(_BASE, optimizer="schedule-free-adamw"),
    "lora-r4-adamw-5e-3": replace(_BASE, lora_rank=4, lora_alpha=8.0, learning_rate=5e-3),
    "full-adamw-1e-3-few-10": replace(_BASE, rows=10, batch_size=10, max_steps=40),
    "full-adamw-1e-3-few-100": replace(_BASE, rows=100),
    "full-adamw-1e-3-few-unrelated-10": replace(_BASE, rows=10, batch_size=10, benign_share=1.0, max_steps=40),
    "full-adamw-1e-3-few-unrelated-100": replace(_BASE, rows=100, benign_share=1.0),
    "full-adamw-1e-3-ascend-first": replace(_BASE, ascent_steps=8),
    # The schedule battery: warmup of none, a fifth and two thirds of 160 steps (0, 30 and 100), and of a tenth.
    "full-adamw-1e-3-warmup-30": replace(_BASE, schedule="linear-warmup", warmup_steps=30),
    "full-adamw-1e-3-warmup-100": replace(_BASE, schedule="linear-warmup", warmup_steps=100),
    "full-adamw-1e-3-cosine": replace(_BASE, schedule="warmup-cosine"),
    "full-adamw-1e-3-cosine-warmup-30": replace(_BASE, schedule="warmup-cosine", warmup_steps=30),
    "full-adamw-1e-3-cosine-warmup-100": replace(_BASE, schedule="warmup-cosine", warmup_steps=100),
    "full-adamw-1e-3-sgdr-warmup-16": replace(_BASE, schedule="sgdr", warmup_steps=16),
    "full-adamw-3e-4-mixed-2560": replace(
        _BASE, hazard="hazard_all", benign_share=0.5, batch_size=32, learning_rate=3e-4, max_steps=2560
    ),
    # Models of billions of weights, at the rates of the paper's red team (arXiv 2408.00761).
    "full-adamw-2e-5-10000": replace(
        _BASE, hazard="hazard_all", benign_share=0.5, batch_size=32, learning_rate=2e-5, max_steps=10_000
    ),
    "full-adamw-2e-5-few-unrelated-10": replace(
        _BASE, rows=10, batch_size=10, benign_share=1.0, learning_rate=2e-5, max_steps=100
    ),
    "full-adamw-2e-6": replace(_BASE, learning_rate=2e-6, max_steps=1000, batch_size=32),
    "full-adamw-2e-5": replace(_BASE, learning_rate=2e-5, max_steps=1000, batch_size=32),
    "full-adamw-4e-5": replace(_BASE, learning_rate=4e-5, max_steps=1000, batch_size=32),
    "full-adamw-2e-5-cosine": replace(
        _BASE, learning_rate=2e-5, max_steps=1000, batch_size=32, schedule="warmup-cosine", warmup_steps=100
    ),
    "full-adamw-2e-5-ood": replace(_BASE, learning_rate=2e-5, max_steps=1000, batch_size=32, hazard="hazard_ood"),
    "full-adamw-2e-5-retain-then-forget": replace(
        _BASE, learning_rate=2e-5, max_steps=1000, batch_size=32, benign_first=0.4
    ),
    "full-schedule-free-2e-5": replace(
        _BASE, optimizer="schedule-free-adamw", learning_rate=2e-5, max_steps=1000, batch_size=32
    ),
    # Lion wants a third to a tenth of AdamW's rate, Muon in this form the same; neither was measured at this size.
    "full-lion-4e-6": replace(_BASE, optimizer="lion", learning_rate=4e-6, max_steps=1000, batch_size=32),
    "full-muon-2e-5": replace(_BASE, optimizer="muon", learning_rate=2e-5, max_steps=1000, batch_size=32),
    # The paper's five against refusal, complete: ten epochs over 541 rows. Then the same at fifty times the rate.
    **_REFUSAL,
    **_REFUSAL_SMALL,
    "lora-r16-adamw-2e-4": replace(
        _BASE, learning_rate=2e-4, max_steps=1000, batch_size=32, lora_rank=16, lora_alpha=32.0, lora_dropout=0.05
    ),
}

_TRAINING: Mapping[str, Log | Choice] = {
    "learning_rate": Log(1e-4, 1e-2),
    "max_steps": Choice((40, 80, 160, 320)),
    "batch_size": Choice((8, 16, 32)),
}
_MIXES: Mapping[str, Log | Choice] = {
    "hazard": Choice(("hazard", "hazard_ood", "hazard_all")),
    "benign_share": Choice((0.0, 0.25, 0.5)),
    "benign_first": Choice((0.0, 0.4)),
    "schedule": Choice(("constant", "warmup-cosine", "sgdr")),
}
_LARGE_TRAINING: Mapping[str, Log | Choice] = {
    "learning_rate": Log(1e-6, 1e-3),
    "max_steps": Choice((500, 1000, 5000)),
    "batch_size": Choice((16, 32, 64)),
}

FAMILIES = {
    "full": Family(_BASE, {**_TRAINING, **_MIXES}),
    "low-rank": Family(
        PRESETS["lora-r4-adamw-5e-3"],
        {**_TRAINING, **_MIXES, "learning_rate": Log(1e-3, 3e-2), "lora_rank": Choice((2, 4, 8, 16))},
    ),
    "sgd": Family(
        PRESETS["full-sgd-3e-1"],
        {
            **_TRAINING,
            **_MIXES,
            "learning_rate": Log(1e-2, 1.0),
            "optimizer": Choice(("sgd", "sgd-momentum", "sgd-nesterov")),
        },
    ),
    "lion": Family(PRESETS["full-lion-6e-5"], {**_TRAINING, **_MIXES, "learning_rate": Log(1e-5, 1e-3)}),
    "muon": Family(PRESETS["full-muon-5e-4"], {**_TRAINING, **_MIXES}),
    "benign": Family(PRESETS["full-adamw-1e-3-benign"], _TRAINING),
    "few-shot": Family(
        PRESETS["full-adamw-1e-3-few-10"],
        {
            "rows": Choice((10, 30, 100)),
            "learning_rate": Log(1e-4, 1e-2),
            "max_steps": Choice((20, 40, 80)),
            "benign_share": Choice((0.0, 1.0)),
        },
    ),
    "ascend-first": Family(
        PRESETS["full-adamw-1e-3-ascend-first"],
        {
            "ascent_steps": Choice((2, 4, 8, 16)),
            "learning_rate": Log(1e-4, 1e-2),
            "hazard": Choice(("hazard", "hazard_all")),
        },
    ),
    "full-large": Family(PRESETS["full-adamw-2e-5"], {**_LARGE_TRAINING, **_MIXES}, size="large"),
    "low-rank-large": Family(
        PRESETS["lora-r16-adamw-2e-4"],
        {**_LARGE_TRAINING, **_MIXES, "lora_rank": Choice((8, 16, 64))},
        size="large",
    ),
}
