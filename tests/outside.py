"""A plug-in from outside holdfast: a module with an attack, a family, a safeguard, an evaluation, a suite and a study."""

from __future__ import annotations

from pathlib import Path

MODULE = '''"""Shifts of single layers, and how large a model's weights are."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast import Attack, Evaluation, Safeguard, Score, Suite
from holdfast.attacks.space import Choice, Family, Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain
    from holdfast.core.types import Measure
    from holdfast.engine.data import Data
    from holdfast.engine.run import Run

STEP = 1.0


@dataclass(frozen=True, kw_only=True)
class Descend(Attack):
    """Plain gradient descent on the last layers' norms."""

    family = "descent on norms"

    rate: float = 0.5
    """what a gradient is multiplied by"""
    batch_size: int = 4
    """rows a step"""
    max_steps: int = 4
    """updates"""

    @property
    def benign_steps(self) -> int:
        return 0

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def reads(self) -> tuple[str, ...]:
        return ("hazard",)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.losses import next_token_loss

        rows = data.stream("hazard", batch_size=self.batch_size, seed=run.seed)
        run.track(rows=rows)
        for _ in range(run.start, self.max_steps):
            model.zero_grad(set_to_none=True)
            batch = next(rows)
            loss = next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count)
            loss.backward()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "norm" in name and parameter.grad is not None:
                        parameter -= STEP * self.rate * parameter.grad
            yield loss.item()


@dataclass(frozen=True, kw_only=True)
class Scale(Safeguard):
    """Every norm a little larger at each step."""

    by: float = 1.01
    """the factor of a step"""
    outer_steps: int = 2
    """steps"""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        import torch

        rows = data.stream("forget", batch_size=2, seed=run.seed), data.stream("retain", batch_size=2, seed=run.seed)
        run.track(forget=rows[0], retain=rows[1])
        for step in range(run.start, self.outer_steps):
            shift = 1e-6 * (next(rows[0]).input_ids.sum() + next(rows[1]).input_ids.sum()).item()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "norm" in name:
                        parameter *= self.by + shift * STEP
            yield {"factor": self.by**step}


@dataclass(frozen=True, kw_only=True)
class Norms(Evaluation):
    """The mean size of the norms' weights."""

    def measures(self, domain: Domain) -> Measure:
        return "ability"

    def available(self, domain: Domain) -> bool:
        return domain.has("benign_heldout")

    def content(self, domain: Domain) -> str:
        return domain.digest("benign_heldout")["benign_heldout"]

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        return None

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain):
        def probe(model: PreTrainedModel) -> list[Score]:
            sizes = [p.detach().abs().mean().item() for name, p in model.named_parameters() if "norm" in name]
            return [Score(metric="nats", value=sum(sizes) / len(sizes), stderr=None, n=len(sizes))]

        return probe


def study():
    from holdfast.core.options import Options
    from holdfast.recipes.demo import study as demo

    return demo(7, Options())


PRESETS = {"descend": Descend(), "descend-far": Descend(rate=2.0), "scale": Scale(), "norms-size": Norms()}
FAMILIES = {"descent": Family(attack=Descend(), space={"rate": Log(0.1, 4.0), "batch_size": Choice((2, 4))})}
SUITES = {"descents": Suite(("descend", "descend-far"), "two lengths of a shift", canonical="descend")}
STUDIES = {"descents-study": study}
'''


def write_plugin(path: Path, *changes: tuple[str, str]) -> Path:
    """Write the module, with parts of its text replaced."""
    text = MODULE
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")
    return path
