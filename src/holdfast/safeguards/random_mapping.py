"""Random Mapping, TAR's initial safeguard: maps the hidden states of hazardous tokens to random directions.

    loss = retain(theta) + w * mean over layers and forget tokens of (1 - |cos(h, r_token)|)

Each token id has one random vector r (arXiv 2408.00761, appendix on the initial safeguard). Our additions hid the knowledge
better on the testbed: the retain loss's representation term, and a weight w other than 1. Deviations: padding and the
embedding's output, which the published code also maps, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from holdfast.core.presets import added
from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.objective import RetainLoss

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class RandomMapping(Forgetting):
    """Hides knowledge but does not remove the knowledge: a shallow safeguard, and the stage that TAR starts from."""

    forget_loss_name: ClassVar[str] = "mapping loss"

    learning_rate: float = 1.5e-3
    """constant learning rate"""
    forget_weight: float = 10.0
    """weight w of the mapping loss relative to the retain loss"""
    spare_sinks: bool = added(False)
    """leave attention sinks unchanged; a language model of real size needs the sinks for every text"""

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        import torch

        from holdfast.engine.losses import distance_from_directions
        from holdfast.engine.stream import states_alone

        config = model.config.get_text_config()
        directions = torch.randn(
            config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(run.seed)
        ).to(model.device)

        def loss(part: Batch) -> torch.Tensor:
            hidden = states_alone(model, part.input_ids)
            # The embedding (the first) knows no context: to map it would be to rewrite the vocabulary.
            return distance_from_directions(
                hidden[1:], directions[part.input_ids], part.mask, part.token_count, self.spare_sinks
            )

        return loss


PRESETS = {
    # After 200 steps the hazard is still falling, so the world decides how much stays in sight: 29 to 44 % on the tuning worlds
    # 2 and 200 to 203, on 2026-11-25. After 300 steps 27 to 38 % stay. docs/testbed.md has the tables.
    "random-mapping": RandomMapping(outer_steps=300),
    # Hundreds of millions of weights: the one of six trials (`holdfast study real-full`) that kept most ability among those that
    # hide. 240 steps at 5e-5 with a weight of 300 hide as much and let less return, at three times the cost.
    "random-mapping-small": RandomMapping(
        outer_steps=80,
        learning_rate=1e-4,
        forget_batch_size=8,
        retain_batch_size=8,
        forget_weight=100.0,
        spare_sinks=True,
        retain=RetainLoss(representations="relative"),
    ),
    "random-mapping-large": RandomMapping(learning_rate=2e-5, forget_batch_size=16, retain_batch_size=16),
}
