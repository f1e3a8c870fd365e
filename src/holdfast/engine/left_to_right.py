"""Whether a model reads text from left to right, which every loss and every score here takes for granted."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError

_TOKENS = 6


def check_left_to_right(model: PreTrainedModel) -> None:
    """Read two short texts that differ in their last token alone, and compare what stands before that token.

    Raises:
        HoldfastError: the model cannot read tokens alone, gives no logits for each token, or an earlier token's logits depend
            on a later token, as in an encoder.
    """
    name = type(model).__name__
    words: int = model.get_input_embeddings().get_parameter("weight").shape[0]
    first = torch.arange(_TOKENS, device=model.device) % words
    second = first.clone()
    second[-1] = (first[-1] + 1) % words
    with torch.no_grad():
        try:
            logits = model(input_ids=torch.stack([first, second]), use_cache=False).logits
        except Exception as error:  # an architecture may raise anything where it needs more than tokens
            raise HoldfastError(
                f"the model, a {name}, cannot read a text of tokens alone ({type(error).__name__}); give a causal language model"
            ) from error
    if logits.shape[:2] != (2, _TOKENS):
        raise HoldfastError(
            f"the model, a {name}, gives no logits for each token of a text; give a causal language model"
        )
    before = logits[:, :-1].float()
    # In half precision experts may get other neighbours in a batch, and round differently.
    tolerance = 1e-4 if logits.dtype == torch.float32 else 0.1
    if float((before[0] - before[1]).square().mean().sqrt()) > tolerance * float(before.std()):
        raise HoldfastError(
            f"the model, a {name}, reads later tokens before it predicts earlier ones, as an encoder does; give a causal "
            "language model, or set is_decoder (or causal) in its config.json if it was trained as one"
        )
