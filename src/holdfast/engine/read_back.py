"""Whether a model that was saved and loaded again is the model that was saved."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.engine.mixed import exact
from holdfast.engine.ranks import totals
from holdfast.engine.sharded import local

_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""of logits, in parts of the largest: another device or kernel gives other last digits"""


def difference(model: PreTrainedModel, loaded: PreTrainedModel) -> str | None:
    """What differs between a model and what was loaded from its files, in a few words; None if they are the same.

    Names, shapes and values of all weights are compared, and logits on a batch, since a config may lose a setting.

    Args:
        model: on any device.
        loaded: on the CPU, or split over the same ranks.
    """
    if (off := shapes_differ(model, loaded)) is not None:
        return off
    back = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        mine, read = local(tensor), local(back[name])
        if any(totals([float(not torch.equal(mine.to(read.device, read.dtype), read))])):
            return f"{name} has other values"
    ours, theirs = _logits(model), _logits(loaded)
    # Per position, for a router's near tie may send a token elsewhere; the median is of most positions.
    apart = ((ours - theirs).abs().amax(-1) / ours.abs().amax(-1)).median()
    return None if apart <= _TOLERANCES[model.dtype] else "its logits on a batch are others"


def shapes_differ(model: PreTrainedModel, loaded: PreTrainedModel) -> str | None:
    """The first weight whose name or shape differs, in a few words; None if all are the same."""
    saved, back = model.state_dict(), loaded.state_dict()
    for name in sorted(saved.keys() ^ back.keys()):
        return f"{name} is in one of the two only"
    for name, tensor in saved.items():
        if tensor.shape != back[name].shape:
            return f"{name} has shape {list(back[name].shape)}, not {list(tensor.shape)}"
    return None


def tokenizers_differ(tokenizer: PreTrainedTokenizerBase, loaded: PreTrainedTokenizerBase) -> str | None:
    """What differs between two tokenizers, in a few words; None if they are the same."""
    if tokenizer.get_vocab() != loaded.get_vocab():
        return "its tokenizer has another vocabulary"
    return None if tokenizer.chat_template == loaded.chat_template else "its tokenizer has another chat template"


def _logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of two short rows of tokens, in evaluation mode: (rows, positions, vocabulary), on the CPU."""
    tokens = int(model.get_input_embeddings().get_parameter("weight").shape[0])
    ids = torch.arange(1, 17, device=model.device).view(2, 8) % tokens
    training = model.training
    model.train(False)
    with torch.no_grad(), exact(model):
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float().cpu()
    model.train(training)
    return logits
