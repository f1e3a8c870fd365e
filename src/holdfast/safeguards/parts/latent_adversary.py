"""An adversary in the hidden states, for latent adversarial training (LAT, arXiv 2407.15549).

    delta = argmin over |delta_t| <= r of LM(hazardous rows; h + delta)         by projected gradient descent

Every token at every chosen layer's output has one perturbation, so that the safeguard's forget loss is taken where a small
change of the hidden states already restores the hazard. The source: absolute radii of 1.5 to 6, 16 updates by AdamW, layer 7
for knowledge and the embedding with every eighth layer for refusals, and a loss towards the hazard and away from the wanted
text. Deviations: the radius is relative to the hidden state, which carries over between models. There are four updates, by
normalised gradients. Only the loss towards the hazard is used. Every token of the row except the first is perturbed, because
the state of the first token is often hundreds of times as long as the others (massive activations, arXiv 2402.17762). A
perturbation serves one update of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.core.ranges import check_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from holdfast.engine.data import Batch


@dataclass(frozen=True, kw_only=True)
class LatentAdversary:
    """Finds a perturbation of hidden states by projected gradient descent."""

    layers: tuple[int, ...] = (0,)
    """layers whose outputs are perturbed, counted from 0"""
    radius: float = 0.5
    """r, greatest length of a token's perturbation, as a share of the norm of the token's hidden state"""
    steps: int = 4
    """updates of the perturbation"""
    step_size: float = 0.25
    """length of an update for each token, as a share of r"""

    def __post_init__(self) -> None:
        check_settings(self, positive=("radius", "steps", "step_size"))

    @contextmanager
    def perturbed(self, model: PreTrainedModel, batch: Batch) -> Iterator[None]:
        """Run the model under the worst perturbation for `batch`; no other batch may go through the model meanwhile."""
        import torch

        from holdfast.engine.anatomy import decoder_layers
        from holdfast.engine.losses import next_token_loss
        from holdfast.engine.predictions import predictions

        pushes: list[torch.Tensor] = []
        norms: list[torch.Tensor] = []

        def push(index: int) -> Any:
            def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                if index >= len(pushes):  # the first pass, which measures
                    norms.append(hidden.detach().norm(dim=-1, keepdim=True))
                    norms[-1][:, 0] = 0.0  # the first token stays where it is
                    pushes.append(torch.zeros_like(hidden, requires_grad=True))
                moved = hidden + pushes[index]
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            return hook

        layers = decoder_layers(model, sorted(self.layers))
        hooks = [layer.register_forward_hook(push(index)) for index, layer in enumerate(layers)]
        try:
            for _ in range(self.steps):
                logits = predictions(model, batch.input_ids)
                loss = next_token_loss(logits, batch.labels, batch.label_count)
                slopes = torch.autograd.grad(loss, pushes)
                with torch.no_grad():
                    for delta, slope, norm in zip(pushes, slopes, norms, strict=True):
                        reach = self.radius * norm
                        length = slope.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                        delta -= self.step_size * reach * slope / length
                        delta *= (reach / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
            for delta in pushes:
                delta.requires_grad_(False)
            yield
        finally:
            for hook in hooks:
                hook.remove()
