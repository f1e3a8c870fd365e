"""Circuit breakers by representation rerouting (RR), and RR under latent adversarial training.

    loss = a * mean over layers and forget tokens of relu(cos(h, h_0)) + retain(theta) + v * LM(refusals)

h_0 are the original model's hidden states at the outputs of the chosen layers (arXiv 2406.04313, algorithm 1 and appendix C).
The source has a 10 for Llama-3, 150 steps of 16 rows, LoRA of rank 16 at 1e-4, and hidden states 10 and 20 of 8 billion
weights, which are the outputs of layers 9 and 19 counted from 0. The source has v = 0, because there refusals are among the
retain rows. Deviations: the source weighs the two terms by a * (1 - t / 2T) and a * t / 2T at step t of T, from 299 : 1 to 1 :
1. Here neither weight is scheduled (10 : 1 throughout), because with the schedule the testbed's models lost their benign facts
in the first steps. The retain loss is TAR's default: the LM loss is added, and all hidden states are compared, without padding.
All weights are trained instead of LoRA. Prompts are never blanked. `spare_sinks` leaves attention sinks unchanged. LAT on
circuit breakers is ours: `LatentAdversary` (arXiv 2407.15549).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from holdfast.core.presets import added
from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.latent_adversary import LatentAdversary
from holdfast.safeguards.parts.objective import RetainLoss

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class CircuitBreakers(Forgetting):
    """Turns the hidden states of hazardous text away from the original model's hidden states."""

    layers: tuple[int, ...] = (1, 2)
    """layers whose outputs are rerouted, counted from 0"""
    forget_weight: float = 10.0
    """weight of the rerouting loss relative to the retain loss"""
    spare_sinks: bool = added(False)
    """leave attention sinks unchanged; a language model of real size needs the sinks for every text"""

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        import torch
        import torch.nn.functional as F

        from holdfast.engine.anatomy import decoder_layers
        from holdfast.engine.losses import without_sinks
        from holdfast.engine.stream import states_alone

        decoder_layers(model, self.layers)
        base, turned = run.base, [layer + 1 for layer in self.layers]

        def loss(part: Batch) -> torch.Tensor:
            hidden = states_alone(model, part.input_ids, turned)
            with torch.no_grad():
                original = states_alone(base, part.input_ids, turned)
            terms = []
            for here, there in zip(hidden, original, strict=True):
                seen = without_sinks(part.mask, there) if self.spare_sinks else part.mask
                terms.append(F.cosine_similarity(here[seen].float(), there[seen].float(), dim=-1).relu().sum())
            return torch.stack(terms).sum() / (len(terms) * part.token_count)

        return loss


_TESTBED = CircuitBreakers()
# Hundreds of millions of weights, 30 layers: the best of six trials (`holdfast study real-full`).
_SMALL = CircuitBreakers(
    outer_steps=60,
    learning_rate=5e-5,
    forget_weight=30.0,
    forget_batch_size=8,
    retain_batch_size=8,
    layers=(9, 19),
    spare_sinks=True,
    retain=RetainLoss(representations="relative"),
)
_LARGE = CircuitBreakers(
    outer_steps=150, learning_rate=1e-5, forget_batch_size=16, retain_batch_size=16, layers=(9, 19)
)

PRESETS = {
    "circuit-breakers": _TESTBED,
    "circuit-breakers-lat": replace(_TESTBED, latent=LatentAdversary()),
    "circuit-breakers-refusal": replace(_TESTBED, refusal_weight=1.0),
    "circuit-breakers-refusal-lat": replace(_TESTBED, refusal_weight=1.0, latent=LatentAdversary()),
    "circuit-breakers-small": _SMALL,
    "circuit-breakers-refusal-small": replace(_SMALL, refusal_weight=1.0),
    "circuit-breakers-large": _LARGE,
}
