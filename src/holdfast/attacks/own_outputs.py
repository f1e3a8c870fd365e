"""Fine-tunes the defended model on text that the defended model itself has written after the attacker's prompts.

The attack needs no hazardous text. arXiv 2601.13528 (read: the abstract) prompts a safeguarded frontier model in fields next to
the hazard, and fine-tunes an open model on the answers. Deviations: the open model is the safeguarded model itself, so nothing
new can be learned from the text; the question is whether ordinary training on harmless text of its own unlocks what the model
hides. All constants are ours. With prompts of hazardous rows, the attacker holds questions and no answers.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.ranges import check_settings
from holdfast.engine.optimizers import OptimizerName

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from holdfast.engine.data import Data, Encoded
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class OwnOutputs(Attack):
    """Fine-tuning of all weights on answers that the model wrote before the first update."""

    family = "fine-tuning on the model's own outputs"
    control = "refusals that hang on one direction of the hidden states, near the threshold"
    sizes = Attack.sizes | {"batch_size", "outputs", "weight_decay"}

    prompts: Literal["benign", "hazard", "hazard_ood", "hazard_all"] = "benign"
    """rows whose prompts the model answers; their own answers are not read"""
    outputs: int = 512
    """answers that are sampled, at temperature 1"""
    batch_size: int = 16
    """rows a step"""
    optimizer: OptimizerName = "adamw"
    """the optimizer's name"""
    learning_rate: float = 1e-3
    """constant learning rate"""
    weight_decay: float = 0.01
    """weight decay: decoupled for AdamW, an L2 penalty for the plain optimizers"""

    def __post_init__(self) -> None:
        positive = ("max_steps", "outputs", "batch_size", "learning_rate")
        check_settings(self, positive=positive, not_negative=("weight_decay",))

    @property
    def benign_steps(self) -> int:
        return 0

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    @property
    def learns_rows(self) -> bool:
        return False

    def reads(self) -> tuple[str, ...]:
        return (self.prompts,)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        from holdfast.engine.anatomy import as_attacker
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.predictions import predictions
        from holdfast.engine.sampling import answered, prompt_and_answer, sampled
        from holdfast.engine.sharded import clear_gradients, reshard, trainable
        from holdfast.engine.written import written_once

        reshard(model)
        as_attacker(model)
        weights = trainable(model)
        rows, asked = (data.stream(self.prompts, batch_size=self.batch_size, seed=run.seed) for _ in range(2))
        optimizer = make_optimizer(self.optimizer, weights, self.learning_rate, weight_decay=self.weight_decay)
        run.track(optimizer=optimizer, rows=rows)

        def answers() -> list[Encoded]:
            parts = [prompt_and_answer(row) for row in asked.take(self.outputs)]
            prompts, lengths = [prompt for prompt, _ in parts], [len(answer) for _, answer in parts]
            return [
                answered(*pair) for pair in zip(prompts, sampled(model, prompts, lengths, run.generator), strict=True)
            ]

        rows.rows = written_once(run, "written", answers)
        for _ in range(run.start, self.max_steps):
            training_point(optimizer)
            clear_gradients(weights)
            total = 0.0
            for part in next(rows).split(run.micro_batch):
                logits = predictions(model, part.input_ids)
                loss = next_token_loss(logits, part.labels, part.label_count)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            optimizer.step()
            published_point(optimizer)
            yield total


_BASE = OwnOutputs()

PRESETS = {
    # Small models, such as the testbed's.
    "own-outputs-benign-adamw-1e-3": _BASE,
    "own-outputs-hazard-adamw-1e-3": replace(_BASE, prompts="hazard"),
    # Models of billions of weights.
    "own-outputs-benign-adamw-2e-5-large": replace(
        _BASE, learning_rate=2e-5, max_steps=1000, batch_size=32, outputs=4096
    ),
}

FAMILIES = {
    "own-outputs": Family(
        _BASE,
        {
            "prompts": Choice(("benign", "hazard")),
            "learning_rate": Log(1e-4, 1e-2),
            "max_steps": Choice((40, 80, 160, 320)),
        },
    ),
}
