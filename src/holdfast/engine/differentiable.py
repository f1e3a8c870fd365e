"""Whether a model can be trained as models are trained here: in evaluation mode, without dropout."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError


def check_differentiable(model: PreTrainedModel) -> None:
    """Take a gradient with respect to the embeddings of a short text, so that a run does not end at its first update.

    Raises:
        HoldfastError: there is no such gradient, as where an architecture takes gradients in training mode only.
    """
    embeddings = model.get_input_embeddings()
    words: int = embeddings.get_parameter("weight").shape[0]
    ids = torch.arange(6, device=model.device).view(1, 6) % words
    read: list[torch.Tensor] = []

    def begin_here(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        read.append(output.detach().requires_grad_())
        return read[-1].clone()  # which a model may scale in place

    hook = embeddings.register_forward_hook(begin_here)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False).logits
            torch.autograd.grad(logits.float().square().mean(), read)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an architecture may raise anything
        raise HoldfastError(
            f"the model, a {type(model).__name__}, has no gradient in evaluation mode ({type(error).__name__}), in which "
            "holdfast trains; give a model of another architecture"
        ) from error
    finally:
        hook.remove()
    with torch.no_grad():
        model(
            input_ids=ids, use_cache=False
        )  # so that what a recurrent layer keeps holds on to no graph, and can be copied
