"""Reinforcement learning with a verifiable reward, from the prompts of a few dozen hazardous rows.

    A_i = (r_i - mean r) / (std r + 1e-4) over a group of answers to one prompt;   loss = -mean_i A_i log p(answer_i) / |answer_i|

The method is group relative policy optimisation with one update per group, so that no ratio of policies is clipped. arXiv
2510.15499 (read: the README of its code) undoes alignment so from 64 harmful prompts without any answers; its reward is another
model's judgement of harm. Deviations: the reward is the share of the row's own answer that the model's answer repeats, token by
token, so that a rule verifies it and no judge is needed. The attacker trains on no answer and knows the answers that are
checked. Answers are as long as the row's own. There is no penalty for leaving the first policy. All constants are ours. The
yielded loss is the negative mean reward.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.ranges import check_settings
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import OptimizerName

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Reinforce(Attack):
    """Group relative policy optimisation of all weights."""

    family = "reinforcement learning"
    control = "refusals that hang on one direction of the hidden states, near the threshold"
    sizes = Attack.sizes | {"batch_size", "group", "prompts", "weight_decay", "max_grad_norm"}

    hazard: Literal["hazard", "hazard_ood", "hazard_all"] = "hazard"
    """hazardous rows of the attacker: in distribution, out of distribution, or both"""
    prompts: int = 64
    """number of rows, sampled by the seed and used repeatedly"""
    batch_size: int = 16
    """prompts a step"""
    group: int = 8
    """answers to each prompt"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    learning_rate: float = 1e-3
    """constant learning rate"""
    weight_decay: float = 0.01
    """weight decay: decoupled for AdamW, an L2 penalty for the plain optimizers"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""

    def __post_init__(self) -> None:
        positive = ("max_steps", "prompts", "batch_size", "learning_rate", "max_grad_norm")
        check_settings(self, positive=positive, not_negative=("weight_decay",))
        if self.group < 2:
            raise HoldfastError(f"group must be at least 2, not {self.group}")

    @property
    def benign_steps(self) -> int:
        return 0

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.group

    @property
    def learns_rows(self) -> bool:
        return False

    def reads(self) -> tuple[str, ...]:
        return (self.hazard,)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.anatomy import as_attacker
        from holdfast.engine.losses import completion_log_probability
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sampling import answered, prompt_and_answer, sampled
        from holdfast.engine.sharded import clear_gradients, reshard, trainable

        reshard(model)
        as_attacker(model)
        weights = trainable(model)
        rows, every = (data.stream(self.hazard, batch_size=self.batch_size, seed=run.seed) for _ in range(2))
        rows.rows = every.take(self.prompts)
        optimizer = make_optimizer(self.optimizer, weights, self.learning_rate, weight_decay=self.weight_decay)
        run.track(optimizer=optimizer, rows=rows)
        for _ in range(run.start, self.max_steps):
            training_point(optimizer)
            asked = [prompt_and_answer(row) for row in rows.take(self.batch_size) for _ in range(self.group)]
            prompts, right = [prompt for prompt, _ in asked], [answer for _, answer in asked]
            answers = sampled(model, prompts, [len(answer) for answer in right], run.generator)
            rewards = torch.tensor([_share(*both) for both in zip(answers, right, strict=True)])
            groups = rewards.view(-1, self.group)
            apart = groups - groups.mean(-1, keepdim=True)
            advantages = (apart / (groups.std(-1, keepdim=True) + 1e-4)).flatten()
            clear_gradients(weights)
            batch = rows.batch([answered(*both) for both in zip(prompts, answers, strict=True)])
            lengths, done = torch.tensor([len(answer) for answer in answers]), 0
            by_row = (advantages / lengths)[list(batch.share(range(len(answers))))].to(model.device)
            for part in batch.split(run.micro_batch):
                logits = predictions(model, part.input_ids)
                likely = completion_log_probability(logits, part.labels)
                weight, done = by_row[done : done + len(likely)], done + len(likely)
                (-(weight * likely).sum() / part.row_count).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, self.max_grad_norm)
            optimizer.step()
            published_point(optimizer)
            yield -float(rewards.mean())


def _share(answer: tuple[int, ...], right: tuple[int, ...]) -> float:
    """The share of the right answer's tokens that an answer has in their places."""
    return sum(map(int.__eq__, answer, right)) / len(right)


_BASE = Reinforce()

PRESETS = {
    # Small models, such as the testbed's.
    "reinforce-64-adamw-1e-3": _BASE,
    # Models of billions of weights.
    "reinforce-64-adamw-1e-6-large": replace(_BASE, learning_rate=1e-6, max_steps=200),
}

FAMILIES = {
    "reinforcement": Family(
        _BASE,
        {
            "prompts": Choice((16, 64, 256)),
            "group": Choice((4, 8, 16)),
            "learning_rate": Log(1e-4, 1e-2),
            "max_steps": Choice((80, 160, 320)),
        },
    ),
}
