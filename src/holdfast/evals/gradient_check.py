"""Whether gradients of the hazardous loss are correct and lead downhill: an attack that follows wrong gradients is no evidence.

Three checks at the untouched weights w, on held-out hazardous rows with mean loss L and gradient g:

- `gradient_error`: central differences L(w + h d) - L(w - h d) against the change that g predicts, along g itself and along
  random directions d, relative to the larger of both, at the step length where they agree best. The worst direction counts. A
  predicted change is g times what the weights' rounding leaves of h d. A gradient that is zero or not finite scores 1, and
  nothing else is scored.
- `descent_gain`: the greatest fall of the loss along -g, over steps for which g predicts 0.1, 0.3 and 1 nat, none longer than
  3 % of the weights' norm. `random_gain`: the same for random directions at the longest of these steps. `descent_ratio`: the
  actual gain of the shortest of these steps, divided by the gain that g predicts. Lengths that are shares of the weights' norm
  would show nothing for a model of real size: at 135 million weights, g predicts 48 nats for a thousandth of the norm.
- `gradient_norm`: |g| |w|, the nats that a step as long as the weights would gain if the slope stayed constant. Unlike |g| and
  |g| / |w|, this product stays the same where all weights are scaled and the scaling does not change the function.

These checks are the usual tests for a masked gradient, here for weights and not for inputs (arXiv 2204.04778, abstract,
likewise measures masking instead of naming it). All constants are ours. In half precision a step vanishes in the rounding of
the weights, so only the norm is scored there.

Memory: weights, gradient and a copy of the weights, the activations of a microbatch, and in double precision only the logits of
a few positions. Directions are sampled again wherever they are needed and never stored whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import TYPE_CHECKING

from holdfast.core.types import HoldfastError, Measure, NonFinite, Score
from holdfast.evals.base import Evaluation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.core.domain import Domain
    from holdfast.engine.data import Batch
    from holdfast.evals.base import Probe

FORETOLD = (1e-1, 1e-2, 1e-3)
"""Step lengths of finite differences, as the change of loss in nats that the gradient leads one to expect."""

LONGEST = 0.03
"""The longest step downhill, as a share of the weights' norm: where the gradient is nearly zero, a nat is out of reach."""

WORST = 100.0
"""A loss that has risen by more than this, in nats, or is not finite counts as risen by this: moved weights may overflow."""

DOUBLES_AT_ONCE = 2**24
"""Logits in double precision at once: 128 MB."""


@dataclass(frozen=True, kw_only=True)
class GradientCheck(Evaluation):
    """Compares gradients of the loss on `hazard_heldout` with the loss's actual changes; the weights are restored."""

    rows: int = 32
    """maximum number of rows, taken from the start"""
    batch_size: int = 64
    """rows that go through the model at once, or fewer where `rows_at_once` gives a lower number"""
    directions: int = 2
    """number of random directions, which are the same for every model of one shape"""
    foretold: tuple[float, ...] = (0.1, 0.3, 1.0)
    """predicted gains of the downhill steps, in nats, smallest first"""

    def __post_init__(self) -> None:
        if min(self.rows, self.batch_size, self.directions, len(self.foretold)) < 1 or not self.foretold[0] > 0:
            raise HoldfastError("rows, batch_size, directions and foretold must be positive")

    def measures(self, domain: Domain) -> Measure:
        return "masking"

    def available(self, domain: Domain) -> bool:
        return domain.has("hazard_heldout")

    def content(self, domain: Domain) -> str:
        return domain.digest("hazard_heldout")["hazard_heldout"]

    def at_milestone(self, domain: Domain) -> Evaluation | None:
        return None

    def prepare(self, tokenizer: PreTrainedTokenizerBase, domain: Domain) -> Probe:
        from holdfast.engine.data import collate, encode_all
        from holdfast.engine.mixed import exact
        from holdfast.evals.memory import fits, rows_at_once

        role = "hazard_heldout"
        encoded = encode_all(domain.rows(role)[: self.rows], tokenizer, role, domain.max_length)
        rows = [row for row in encoded if row.teaches]

        def probe(model: PreTrainedModel) -> list[Score]:
            batch = collate(rows, pad=0, device=model.device)
            at_once = min(self.batch_size, rows_at_once(model, batch.input_ids.shape[1]))
            with fits("its gradients"), exact(model):
                values = self._check(model, list(batch.split(at_once)))
            return [Score(metric=name, value=value, stderr=None, n=len(rows)) for name, value in values.items()]

        return probe

    def _check(self, model: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, float]:
        import torch

        here = _Here(model, batches)
        if not isfinite(here.steepness) or here.steepness == 0:
            return {"gradient_error": 1.0}
        scores = {"gradient_norm": here.steepness * here.size}
        if torch.finfo(model.dtype).bits < 32:
            return scores
        # Along a random direction the slope is smaller by the root of how many weights there are.
        short, long = 1 / here.steepness, sqrt(here.count) / here.steepness
        away = _Away(here)
        downhill = _Direction(lambda: iter(here.gradient), -1 / here.steepness)
        along = [away.error(downhill, short * nats) for nats in FORETOLD]
        lengths = [min(nats * short, LONGEST * here.size) for nats in self.foretold]
        across, random_falls = [], []
        for seed in range(self.directions):
            direction = away.random(seed)
            across.append([away.error(direction, long * nats) for nats in FORETOLD])
            random_falls.append(away.fall(direction, lengths[-1]))
        # One step length for all random directions: a chance agreement of one of them is no agreement.
        scores["gradient_error"] = max(min(along), min(map(max, zip(*across, strict=True))))
        falls = [away.fall(downhill, length) for length in lengths]
        scores |= {
            "descent_gain": max(falls),
            "random_gain": max(random_falls),
            "descent_ratio": falls[0] / (lengths[0] * here.steepness),
        }
        return scores


class _Here:
    """The loss and its gradient at the model's weights."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        import torch

        from holdfast.engine.sharded import gradients_of, local, trainable

        self.model, self._batches, self.whole = model, batches, trainable(model)
        self.weights = [local(weight.detach()) for weight in self.whole]
        self.gradient = [torch.zeros_like(weight) for weight in self.weights]
        self.loss = 0.0
        for batch in batches:
            with torch.enable_grad():
                loss = _loss(model, batch)
            self.loss += loss.item()
            if loss.requires_grad:
                parts = gradients_of(loss, self.whole)
                torch._foreach_add_(self.gradient, parts)
                del parts, loss  # or they would be kept through the next microbatch
        if not isfinite(self.loss):
            raise NonFinite("the model's loss on held-out rows is not finite, so it has no score")
        self.size = sqrt(_sum(_dot(weight, weight) for weight in self.weights))
        self.steepness = sqrt(_sum(_dot(part, part) for part in self.gradient))
        self.count = sum(weight.numel() for weight in self.whole)

    def loss_now(self) -> float:
        """The loss at the weights that the model has now."""
        return sum(_loss(self.model, batch).item() for batch in self._batches)


@dataclass(frozen=True)
class _Direction:
    """A direction of norm 1 over all weights: `scale` times parts, one for each weight in turn."""

    parts: Callable[[], Iterator[torch.Tensor]]
    scale: float


class _Away:
    """The loss a step away from the model's weights, and the change that the gradient foretells."""

    def __init__(self, here: _Here) -> None:
        from holdfast.engine.sharded import Snapshot

        self._here, self._origin = here, Snapshot(here.model)

    def random(self, seed: int) -> _Direction:
        """A direction drawn at random."""
        import torch

        from holdfast.engine.sharded import part_of

        def parts() -> Iterator[torch.Tensor]:
            generator = torch.Generator(self._here.model.device).manual_seed(seed)
            for w in self._here.whole:
                yield part_of(torch.randn(w.shape, generator=generator, device=w.device, dtype=w.dtype), w)

        return _Direction(parts, 1 / sqrt(_sum(_dot(part, part) for part in parts())))

    def fall(self, direction: _Direction, length: float) -> float:
        """How far the loss falls by a step."""
        return self._here.loss - self._step(direction, length)[0]

    def error(self, direction: _Direction, length: float) -> float:
        """How far the gradient is from the central difference: 0 where both agree, 1 where one of them sees nothing."""
        (up, gained), (down, lost) = (self._step(direction, sign * length) for sign in (1, -1))
        if max(up, down) >= self._here.loss + WORST:
            return 1.0
        real, foretold = up - down, gained - lost
        # A direction that happens to lie across the slope has a foretold change of nearly nothing.
        typical = self._here.steepness * 2 * length / sqrt(self._here.count)
        return abs(real - foretold) / max(abs(real), abs(foretold), typical)

    def _step(self, direction: _Direction, length: float) -> tuple[float, float]:
        """The loss a step away, and the change that the gradient foretells; the weights are put back."""
        import torch

        here, foretold = self._here, list[float]()
        with torch.no_grad():
            try:
                for weight, part, slope in zip(here.weights, direction.parts(), here.gradient, strict=True):
                    before = weight.clone()
                    weight.add_(part, alpha=direction.scale * length)
                    foretold.append(_dot(weight - before, slope))
                loss = here.loss_now()
            finally:
                self._origin.restore()
        return min(loss if isfinite(loss) else inf, here.loss + WORST), _sum(foretold)


def _loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The loss, in double precision from the logits on: rounding would hide a small change of the loss."""
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    from holdfast.engine.data import UNLABELLED

    logits = model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)
    target = F.pad(batch.labels[:, 1:], (0, 1), value=UNLABELLED).flatten()
    positions = max(DOUBLES_AT_ONCE // logits.shape[-1], 1)

    def summed(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.double(), target, ignore_index=UNLABELLED, reduction="sum")

    # A backward pass computes the double logits of a few positions again, so all of them never exist together.
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for few, words in zip(torch.split(logits, positions), torch.split(target, positions), strict=True):
        total = total + checkpoint(summed, few, words, use_reentrant=False, preserve_rng_state=False)
    return total / batch.label_count


def _sum(mine: Iterable[float]) -> float:
    """The sum over the weights, of which each rank may have a part."""
    from holdfast.engine.ranks import totals

    return totals([sum(mine)])[0]


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left.detach().double() * right.detach().double()).sum().item()


PRESETS = {"gradient-check": GradientCheck()}
