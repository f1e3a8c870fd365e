"""Max Entropy, a baseline of TAR's paper: maximises the entropy of the next token on hazardous text.

    loss = retain(theta) - w * mean over labelled forget tokens of H(p(next token))

The source is arXiv 2408.00761, baselines of the weaponization domains. Constants of `max-entropy-large` are the paper's, as
others report its appendix: 600 steps of schedule-free AdamW at 1e-5 on 64 rows; the paper's 100 steps of warmup are left out.
Constants of `max-entropy` were chosen on the testbed. Deviations: padding and unlabelled positions do not count. In the
published code, both count, the forget batch comes from the retain set, and the baseline cannot run: its loss is called with
three arguments and takes one. The retain loss has TAR's representation term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.safeguards.parts.forgetting import Forgetting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class MaxEntropy(Forgetting):
    """Maximises the entropy of the next token on hazardous text."""

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        from holdfast.engine.losses import negative_entropy
        from holdfast.engine.predictions import predictions

        def loss(part: Batch) -> torch.Tensor:
            logits = predictions(model, part.input_ids)
            return negative_entropy(logits, part.labels, part.label_count)

        return loss


PRESETS = {
    "max-entropy": MaxEntropy(learning_rate=2e-3, forget_weight=10.0),
    "max-entropy-large": MaxEntropy(
        outer_steps=600,
        learning_rate=1e-5,
        optimizer="schedule-free-adamw",
        forget_batch_size=64,
        retain_batch_size=64,
        micro_batch=8,
    ),
}
