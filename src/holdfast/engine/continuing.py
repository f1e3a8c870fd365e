"""What a model says after text that it has read: from the keys it kept where that is right, else by reading all again.

Some architectures, mostly those with a recurrent state, keep nothing, or go wrong where several tokens follow what they kept.
A batch tells: what follows from the kept keys is compared with a pass that keeps nothing, once for each model and use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from holdfast.engine.mixed import exact, multiplies_in_bfloat16
from holdfast.engine.ranks import agreed

_TOKENS_AT_ONCE = 4096
"""Most tokens that go through a model together where all is read again."""

_ROWS_COMPARED = 2


@dataclass(frozen=True, kw_only=True)
class Text:
    """Rows that a model has read."""

    logits: torch.Tensor
    """after the last token, B x V"""
    tokens: torch.Tensor
    """all tokens read, B x T"""
    kept: Any = None
    """keys and values, or another state, of all tokens but the last ones; None: the model reads all again"""
    mask: torch.Tensor | None = None
    """which tokens belong to the text, B x T; the others stand before shorter rows. None: all do"""


def read(model: PreTrainedModel, tokens: torch.Tensor, *, keeping: bool) -> Text:
    """Read the first tokens of a text, B x T; where `keeping`, the model keeps what it needs to go on."""
    if not keeping:
        return Text(logits=_again(model, tokens, 1)[:, -1], tokens=tokens)
    output = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    return Text(logits=output.logits[:, -1], tokens=tokens, kept=_kept(output))


def read_together(model: PreTrainedModel, rows: Sequence[Sequence[int]], shared: int) -> Text:
    """Read rows of different lengths at once: their common beginning once, and then the rest, padded before shorter rows.

    Args:
        model: keeps keys and values.
        rows: the tokens of each row.
        shared: how many first tokens all rows have in common; less than the length of any row.
    """
    kept = None
    if shared:
        beginning = torch.tensor([list(rows[0][:shared])], device=model.device)
        kept = _kept(model(input_ids=beginning, use_cache=True, logits_to_keep=1))
        kept.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=model.device))
    longest = max(map(len, rows))
    # The padding stands between the common beginning and the rest.
    padded = [[*row[:shared], *[0] * (longest - len(row)), *row[shared:]] for row in rows]
    tokens = torch.tensor(padded, device=model.device)
    missing = torch.tensor([[longest - len(row)] for row in rows], device=model.device)
    places = torch.arange(longest, device=model.device)
    mask = (places < shared) | (places >= shared + missing)
    output = model(
        input_ids=tokens[:, shared:],
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, shared:],
        past_key_values=kept,
        use_cache=True,
        logits_to_keep=1,
    )
    return Text(logits=output.logits[:, -1], tokens=tokens, kept=_kept(output), mask=mask)


def read_on(model: PreTrainedModel, text: Text, token: torch.Tensor) -> Text:
    """Read one more token of each row, B x 1. What was kept belongs to the new text from now on."""
    tokens = torch.cat([text.tokens, token], dim=1)
    if text.kept is None:
        return Text(logits=_again(model, tokens, 1)[:, -1], tokens=tokens)
    mask, more = None, {}
    if text.mask is not None:
        mask = torch.cat([text.mask, torch.ones_like(token, dtype=torch.bool)], dim=1)
        more = {"attention_mask": mask.long(), "position_ids": mask.sum(1, keepdim=True) - 1}
    output = model(input_ids=token, past_key_values=text.kept, use_cache=True, logits_to_keep=1, **more)
    return Text(logits=output.logits[:, -1], tokens=tokens, kept=_kept(output), mask=mask)


def of_rows(text: Text, rows: torch.Tensor) -> Text:
    """Some rows of a text. What was kept belongs to the new text from now on."""
    if text.kept is not None:
        text.kept.reorder_cache(rows)
    mask = None if text.mask is None else text.mask[rows]
    return Text(logits=text.logits[rows], tokens=text.tokens[rows], kept=text.kept, mask=mask)


def after_each(model: PreTrainedModel, text: Text, counts: torch.Tensor, continuations: torch.Tensor) -> torch.Tensor:
    """Logits after every token of the continuations (C x W x V), of which row i of the text has `counts[i]` in turn."""
    order = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    if text.kept is None:
        return _again(model, torch.cat([text.tokens[order], continuations], dim=1), continuations.shape[1])
    text.kept.reorder_cache(order)
    logits: torch.Tensor = model(input_ids=continuations, past_key_values=text.kept, use_cache=True).logits
    return logits


_found: WeakKeyDictionary[PreTrainedModel, dict[bool, tuple[int, bool]]] = WeakKeyDictionary()
"""By model, and by whether several tokens follow at once: the longest text compared, and whether the kept keys were right."""


def keeps_right(model: PreTrainedModel, tokens: Sequence[Sequence[int]], more: int, *, at_once: bool) -> bool:
    """Whether what a model keeps of a text gives what a pass that keeps nothing gives; compared once a model and use.

    Args:
        model: compared again where a longer text than before comes.
        tokens: texts of one length, of which a few are compared.
        more: tokens that will follow; the texts' own tokens stand for them.
        at_once: whether these follow at once, or one by one.
    """
    length = len(tokens[0]) + more
    compared, right = _found.setdefault(model, {}).get(at_once, (0, True))
    if right and compared < length:
        rows = torch.tensor([list(row) for row in tokens[:_ROWS_COMPARED]], device=model.device)
        following = rows.repeat(1, more // rows.shape[1] + 1)[:, :more]
        # The rounding of products would look like keys that are wrong, or hide them.
        with torch.no_grad(), exact(model):
            right = agreed(_agrees(model, rows, following, at_once))
        _found[model][at_once] = length, right
    return right


def _agrees(model: PreTrainedModel, rows: torch.Tensor, following: torch.Tensor, at_once: bool) -> bool:
    whole = _again(model, torch.cat([rows, following], dim=1), following.shape[1])
    try:
        text = read(model, rows, keeping=True)
        if at_once:
            # Each row twice, as the options of a question share their prompt.
            twice = following.repeat_interleave(2, dim=0)
            logits = after_each(model, text, torch.full((len(rows),), 2, device=rows.device), twice)[::2].float()
        else:
            steps = []
            for token in torch.split(following, 1, dim=1):
                text = read_on(model, text, token)
                steps.append(text.logits)
            logits = torch.stack(steps, dim=1).float()
    except Exception:  # whatever an architecture without such keys raises, all is read again
        return False
    return alike(model, logits, whole) or not bool(whole.float().std().isfinite())


def alike(model: PreTrainedModel, logits: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether a model's logits are those of a pass that keeps nothing, up to rounding; False where either are not finite."""
    apart = float((logits.float() - whole.float()).square().mean().sqrt() / whole.float().std())
    fine = whole.dtype == torch.float32 and not multiplies_in_bfloat16(model)
    return apart <= (1e-3 if fine else 0.1)


def _again(model: PreTrainedModel, tokens: torch.Tensor, last: int) -> torch.Tensor:
    """The logits after each of the last tokens, B x last x V, a few rows at a time."""
    rows = max(_TOKENS_AT_ONCE // tokens.shape[1], 1)
    parts = [
        model(input_ids=part, use_cache=False, logits_to_keep=last).logits[:, -last:]
        for part in torch.split(tokens, rows)
    ]
    return torch.cat(parts)


def _kept(output: Any) -> Any:
    kept = getattr(output, "past_key_values", None)
    if kept is None:
        raise ValueError("the model keeps nothing of what it read")
    return kept
