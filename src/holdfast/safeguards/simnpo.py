"""SimNPO, simple negative preference optimisation: NPO without a reference model, with the mean loss of a row's tokens.

    loss = retain(theta) + w * mean over forget rows of -(2 / beta) * log sigmoid(beta * (loss(row) - gamma))

loss(row) is the mean cross entropy of the row's labelled tokens under the model as it is now. A row that the model finds
unlikely is left alone, however likely the row was before (arXiv 2410.07163; its section on NPO calls the opposite a bias of the
reference model). Constants of the authors' code: for WMDP beta 0.1, no gamma, w 1, 9.5e-6, at most 500 steps of 4 rows; for TOFU
beta 2.5, gamma 0 and w 0.1375 at 1e-5. `simnpo-large` has those for WMDP. Constants of `simnpo` were chosen on the testbed.
Deviations: in the code for WMDP loss(row) is the mean over the tokens of a whole microbatch, which there is one row; the retain
loss has TAR's representation term; the rate is constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.core.ranges import check_settings
from holdfast.safeguards.parts.forgetting import Forgetting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch, Data
    from holdfast.engine.run import Run
    from holdfast.safeguards.parts.forgetting import Loss


@dataclass(frozen=True, kw_only=True)
class SimNPO(Forgetting):
    """Ascends on hazardous text until its tokens are unlikely, whatever they were before."""

    beta: float = 0.1
    """inverse temperature; a smaller value makes the ascent last longer"""
    margin: float = 0.0
    """gamma, loss of a token, in nats, around which the ascent fades"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, positive=("beta",), not_negative=("margin",))

    def forget_loss(self, model: PreTrainedModel, data: Data, run: Run) -> Loss:
        import torch.nn.functional as F

        from holdfast.engine.data import UNLABELLED
        from holdfast.engine.losses import completion_log_probability
        from holdfast.engine.predictions import predictions

        def loss(part: Batch) -> torch.Tensor:
            log_p = completion_log_probability(predictions(model, part.input_ids), part.labels)
            # A row that was cut down to its prompt has no labels, and its loss is 0.
            lengths = (part.labels[:, 1:] != UNLABELLED).sum(-1).clamp(min=1)
            return -(2 / self.beta) * F.logsigmoid(-self.beta * (log_p / lengths + self.margin)).sum() / part.row_count

        return loss


PRESETS = {
    "simnpo": SimNPO(forget_weight=0.3),
    "simnpo-large": SimNPO(
        outer_steps=500,
        learning_rate=9.5e-6,
        forget_batch_size=4,
        retain_batch_size=4,
    ),
}
