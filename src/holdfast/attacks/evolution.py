"""Evolution strategies: fine-tunes from forward passes alone, which defences trained against gradients have not seen.

    g = 1/n sum_i  (L(theta + sigma e_i) - L(theta - sigma e_i)) / (2 s) e_i,  e_i ~ N(0, 1);   theta <- Adam(theta, g)

s is the standard deviation of the 2n losses. Antithetic pairs and the estimate come from evolution strategies (arXiv
1703.03864). The noise is sampled again from its seed instead of being stored, as MeZO does for language models (arXiv
2305.17333). A large step of sigma looks beyond the slope of the loss at one point, which is what a safeguard changed. Masked,
flattened or reversed gradients therefore do not mislead the attack.

Deviations: losses are z-scored as in arXiv 2509.24372, in place of the ranks of the first source. A rank flips where two losses
differ in their last bit, as losses do between one process and several. By default, only vectors are trained: the scales of the
norms, and the biases. The reason is that the error of the estimate grows with the number of trained weights. The scales of the
norms are 672 of the 381,408 weights of the testbed's model, yet training them alone undoes a shallow safeguard (arXiv
2312.11420 adapts models through them alone). The weights are restored from a copy, because subtracting the noise leaves a
rounding error. Constants for small models are ours.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from holdfast.attacks.base import Attack
from holdfast.attacks.space import Choice, Family, Log
from holdfast.core.types import HoldfastError
from holdfast.engine.optimizers import OptimizerName

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run


@dataclass(frozen=True, kw_only=True)
class Evolution(Attack):
    """Minimise the language-model loss on hazardous rows without any gradient."""

    family = "evolution strategies"
    control = "refusals that hang on one direction of the hidden states, which the scales of the norms can weaken"

    sizes = Attack.sizes | {"batch_size"}

    hazard: Literal["hazard", "hazard_ood", "hazard_all"] = "hazard_all"
    """hazardous rows of the attacker: in distribution, out of distribution, or both"""
    benign_share: float = 0.0
    """share of each batch that is benign"""
    batch_size: int = 32
    """rows a step; all losses of a step use the same rows"""
    weights: Literal["vectors", "all"] = "vectors"
    """trained weights: those of one dimension (scales of norms, and biases) or all"""
    pairs: int = 16
    """n, antithetic pairs a step; each pair costs two forward passes"""
    sigma: float = 0.02
    """the noise's standard deviation"""
    optimizer: OptimizerName = "adam"
    """optimizer that receives the estimate as the gradient; `sgd` is the plain strategy"""
    learning_rate: float = 1e-2
    """constant learning rate"""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "pairs"):
            if getattr(self, name) < 1:
                raise HoldfastError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("sigma", "learning_rate"):
            if not getattr(self, name) > 0:
                raise HoldfastError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.benign_rows < self.batch_size:
            raise HoldfastError(
                f"benign_share must leave hazardous rows in a batch of {self.batch_size}, not {self.benign_share}"
            )

    @property
    def benign_steps(self) -> int:
        return 0

    @property
    def benign_rows(self) -> int:
        """Benign rows in a batch."""
        return round(self.benign_share * self.batch_size)

    @property
    def rows_per_step(self) -> int:
        return self.batch_size

    def reads(self) -> tuple[str, ...]:
        return (self.hazard, "benign") if self.benign_rows else (self.hazard,)

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        import torch

        from holdfast.engine.optimizers import make_optimizer, published_point, training_point
        from holdfast.engine.sharded import clear_gradients, local, reshard, trainable

        model.train(False)
        reshard(model)
        moved = [weight for weight in trainable(model) if self.weights == "all" or weight.dim() == 1]
        if not moved:
            raise HoldfastError(
                f'the architecture {type(model).__name__} has no scales of norms and no biases; set weights to "all"'
            )
        streams = {name: data.stream(name, batch_size=self.batch_size, seed=run.seed) for name in self.reads()}
        optimizer = make_optimizer(self.optimizer, moved, self.learning_rate)
        run.track(optimizer=optimizer, **streams)
        for _ in range(run.start, self.max_steps):
            hazard = streams[self.hazard]
            rows = hazard.take(self.batch_size - self.benign_rows)
            if self.benign_rows:
                rows += streams["benign"].take(self.benign_rows)
            reshard(model)
            training_point(optimizer)
            origin = [local(weight.detach()).clone() for weight in moved]
            seeds = torch.randint(2**62, (self.pairs,), generator=run.generator).tolist()
            losses = self._losses(model, moved, origin, seeds, list(hazard.batch(rows).split(run.micro_batch)))
            # Where all losses agree there is no direction: the weights stay.
            slopes = (losses[:, 0] - losses[:, 1]) / (2 * losses.std().clamp(min=1e-12))
            clear_gradients(moved)
            for slope, seed in zip((slopes / self.pairs).tolist(), seeds, strict=True):
                for weight, noise in zip(moved, _noise(moved, seed), strict=True):
                    weight.grad = slope * noise if weight.grad is None else weight.grad.add_(noise, alpha=slope)
            optimizer.step()
            published_point(optimizer)
            yield losses.mean().item()

    def _losses(
        self,
        model: PreTrainedModel,
        moved: Sequence[nn.Parameter],
        origin: Sequence[torch.Tensor],
        seeds: Sequence[int],
        parts: Sequence[Batch],
    ) -> torch.Tensor:
        """The batch's loss on both sides of the weights for each pair, over all ranks; shape pairs x 2."""
        import torch

        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions
        from holdfast.engine.ranks import averaged
        from holdfast.engine.rounding import rounded
        from holdfast.engine.sharded import local, reshard

        losses = torch.empty(len(seeds), 2, device=parts[0].input_ids.device)
        with torch.no_grad():
            for pair, seed in enumerate(seeds):
                for side, sign in enumerate((1, -1)):
                    for weight, start, noise in zip(moved, origin, _noise(moved, seed), strict=True):
                        moved_there = start + sign * self.sigma * local(noise)
                        local(weight.detach()).copy_(rounded(moved_there, weight.dtype))
                    losses[pair, side] = 0.0
                    for part in parts:
                        logits = predictions(model, part.input_ids)
                        losses[pair, side] += next_token_loss(logits, part.labels, part.label_count)
                    reshard(model)
            for weight, start in zip(moved, origin, strict=True):
                local(weight.detach()).copy_(start)
        return averaged(losses)


def _noise(weights: Sequence[nn.Parameter], seed: int) -> Iterator[torch.Tensor]:
    """Standard normal noise for each weight, the same on every rank before it is sharded as the weight is."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    generator = torch.Generator(weights[0].device).manual_seed(seed)
    for weight in weights:
        whole = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=torch.float32)
        yield distribute_tensor(whole, weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else whole


PRESETS = {
    # Small models, such as the testbed's.
    "evolution-vectors-adam-1e-2": Evolution(),
    "evolution-vectors-adam-3e-2-40": Evolution(learning_rate=3e-2, max_steps=40),
}

FAMILIES = {
    # Forty updates of 32 passes each are as dear as a few hundred of fine-tuning.
    "evolution": Family(
        Evolution(max_steps=40),
        {
            "learning_rate": Log(3e-3, 1e-1),
            "sigma": Log(5e-3, 5e-2),
            "weights": Choice(("vectors", "all")),
            "benign_share": Choice((0.0, 0.5)),
        },
    ),
}
