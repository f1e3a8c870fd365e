"""NPO, negative preference optimisation, and NPO + SAM, which also forgets at nearby weights.

    loss = retain(theta) + w * mean over forget rows of -(2 / beta) * log sigmoid(-beta * log(p(row) / p_before(row)))

p(row) is the product of the probabilities of the row's labelled tokens, and p_before is that product under the model before
this stage. The loss is gradient ascent that fades where the row has been forgotten (arXiv 2404.05868, equation 3). With SAM
(arXiv 2502.05374, equation 6), the gradient of the forget loss is taken at theta + rho * g / |g|, where g is that gradient at
theta.

Constants: the first paper has beta 0.1. The second paper's code has rho 0.01 and 125 steps of 4 rows at 5e-6, which
`npo-sam-large` uses. The beta of 0.015 and the weight of 1 / 2.25 in that code belong to another normalisation, which uses the
mean cross entropy of a batch in place of the row's, and do not carry over. Our normalisation and beta are the first paper's.
Constants of `npo` and `npo-sam` were chosen on the testbed. Deviations: the retain loss has TAR's representation term; the rate
is constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.ranges import check_settings
from holdfast.safeguards.parts.forgetting import Forgetting
from holdfast.safeguards.parts.objective import RetainLoss, take_gradient

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.engine.sharded import GradientSum
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class NPO(Forgetting):
    """Ascends on hazardous text until the text is forgotten, with or without sharpness-aware minimisation."""

    beta: float = 0.1
    """inverse temperature; a smaller value makes the ascent last longer"""
    sam_radius: float = 0.0
    """rho, distance from the weights at which the forget gradient is taken; 0: plain NPO"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("beta",), not_negative=("sam_radius",))

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        import torch
        import torch.nn.functional as F

        from holdfast.engine.losses import completion_log_probability
        from holdfast.engine.predictions import predictions

        before = run.initial

        def loss(part: Batch) -> torch.Tensor:
            now = completion_log_probability(predictions(model, part.input_ids), part.labels)
            with torch.no_grad():
                logits = predictions(before, part.input_ids)
                then = completion_log_probability(logits, part.labels)
            return -(2 / self.beta) * F.logsigmoid(-self.beta * (now - then)).sum() / part.row_count

        return loss

    def take_forget(self, gradients: GradientSum, loss: Loss, model: PreTrainedModel, batch: Batch) -> float:
        from holdfast.engine.sharded import displaced

        if not self.sam_radius:
            return super().take_forget(gradients, loss, model, batch)
        total = 0.0
        for part in batch.split(self.micro_batch):
            value = loss(part)
            value.backward()  # type: ignore[no-untyped-call]
            total += value.item()
        with displaced(model, self.sam_radius):
            take_gradient(gradients, self.forget_weight, loss, batch, self.micro_batch)
        return total


PRESETS = {
    "npo": NPO(),
    "npo-sam": NPO(sam_radius=0.1),
    # Hundreds of millions of weights: the best of six trials (`holdfast study real-full`), which left 50 % in sight.
    "npo-small": NPO(
        outer_steps=120,
        learning_rate=2e-4,
        forget_batch_size=8,
        retain_batch_size=8,
        retain=RetainLoss(representations="relative"),
    ),
    "npo-sam-large": NPO(
        outer_steps=125,
        learning_rate=5e-6,
        sam_radius=0.01,
        forget_batch_size=4,
        retain_batch_size=4,
    ),
}
