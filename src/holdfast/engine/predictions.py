"""What a model predicts after every token: logits, or, where these are many, the states from which parts of them are computed.

The logits of 64 rows of 512 tokens over 131,072 words take 17 GB in single precision, and a loss takes a multiple of that. A loss
over tokens needs the logits of a few tokens at a time. Where the logits are many (`core.memory.LOGITS_AT_ONCE`), the model's
last hidden states stand for them. `over_tokens` then runs the model's own end (its head, and whatever the family does behind the
head) on one part of the tokens after the other, and once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from holdfast.core.memory import LOGITS_AT_ONCE
from holdfast.engine.anatomy import decoder
from holdfast.engine.rounding import wide

_PARTS, _PART = {"cpu": 2**25}, 2**27
"""logits of a part: on a CPU 256 tokens of 131,072 words, elsewhere four times as many, since every part makes a gradient of the
whole head"""
_TOLERANCE = 1e-3
"""of the model's end when it runs alone, in units of the logits' spread, in single precision; rounding makes some 1e-6"""


@dataclass(frozen=True)
class Deferred:
    """The logits of some tokens, which are computed where a loss needs them."""

    states: torch.Tensor
    """last hidden states, ... x H"""
    end: Callable[[torch.Tensor], torch.Tensor]
    """from last hidden states (N x H) to their logits (N x V)"""
    words: int
    """V"""
    recording: bool
    """whether gradients of these logits are wanted"""

    def __getitem__(self, where: torch.Tensor) -> Deferred:
        return replace(self, states=self.states[where])

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """The logits of some states."""
        with torch.set_grad_enabled(self.recording and torch.is_grad_enabled()):
            return self.end(states)

    def weights(self) -> list[torch.Tensor]:
        """The trainable weights of the end, found behind the logits of no token."""
        if not self.recording:
            return []
        with torch.enable_grad():
            nodes, seen = [self.end(self.states.detach().flatten(0, -2)[:0]).grad_fn], dict[Any, None]()
        while nodes:
            if (node := nodes.pop()) is not None and node not in seen:
                seen[node] = None
                nodes += [following for following, _ in node.next_functions]
        return [node.variable for node in seen if hasattr(node, "variable")]


Logits: TypeAlias = torch.Tensor | Deferred
"""Logits, ... x V, whole or deferred."""


def predictions(model: PreTrainedModel, input_ids: torch.Tensor) -> Logits:
    """The logits of a batch of tokens (B x T): deferred where they are many and the model's end can run alone."""
    if are_many(model, input_ids) and (body := body_of(model)) is not None:
        return deferred(model, body, body_output(model, body, input_ids))
    logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


def are_many(model: PreTrainedModel, input_ids: torch.Tensor) -> bool:
    """Whether the logits of a batch of tokens (B x T) are too many to be computed at once."""
    return input_ids.numel() * _words(model) > LOGITS_AT_ONCE


def deferred(model: PreTrainedModel, body: nn.Module, output: Any) -> Deferred:
    """The logits that follow from what the body of a model gave."""
    rest = {name: value for name, value in output.items() if name not in ("last_hidden_state", "hidden_states")}

    def end(states: torch.Tensor) -> torch.Tensor:
        # The model's own end runs on these states, in place of what its body would give.
        given = type(output)(last_hidden_state=states[None], **rest)
        tokens = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        body.forward = lambda *args, **kwargs: given
        try:
            logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
        finally:
            del body.forward
        return logits[0]

    return Deferred(output.last_hidden_state, end, _words(model), torch.is_grad_enabled())


def over_tokens(
    loss: Callable[..., torch.Tensor], logits: Sequence[Logits], where: torch.Tensor, *beside: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """A loss of some tokens, in parts where logits are deferred.

    Args:
        loss: gets the logits of n tokens (n x V for each of `logits`, at least single precision) and n items of each of `beside`.
        logits: each B x T x V.
        where: which tokens, B x T.
        beside: each has an item a token of `where`, and no gradient.

    Returns:
        what `loss` gives for each part, in the order of the tokens.
    """
    chosen = [each[where] for each in logits]
    tensors = [each.states if isinstance(each, Deferred) else each for each in chosen]

    def of_part(*part: torch.Tensor) -> torch.Tensor:
        given = zip(chosen, part[: len(chosen)], strict=True)
        whole = [each.of(tensor) if isinstance(each, Deferred) else tensor for each, tensor in given]
        return loss(*(each.to(wide(each.dtype)) for each in whole), *part[len(chosen) :])

    late = [each for each in chosen if isinstance(each, Deferred)]
    if not late:
        return (of_part(*tensors, *beside),)
    size = max(_PARTS.get(where.device.type, _PART) // max(each.words for each in late), 1)
    if not torch.is_grad_enabled():
        return tuple(of_part(*part) for part in _parts(size, [*tensors, *beside]))
    weights = list(dict.fromkeys(weight for each in late for weight in each.weights()))
    values = _InParts.apply(of_part, size, len(tensors), len(beside), *tensors, *beside, *weights)  # type: ignore[no-untyped-call]
    return cast(tuple[torch.Tensor, ...], values)


class _InParts(torch.autograd.Function):
    """Calls a function of tokens on a part of them after the other; the backward pass calls the function again.

    Gradients of the weights add up in single precision at least, whatever the weights are.
    """

    @staticmethod
    def forward(
        ctx: Any, of_part: Callable[..., torch.Tensor], size: int, first: int, beside: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The arguments are the function, tokens in a part, how many tensors have gradients, how many stand beside them, and all
        tensors: these two kinds, and then weights."""
        ctx.of_part, ctx.size, ctx.first, ctx.tokens = of_part, size, first, first + beside
        ctx.save_for_backward(*tensors)
        values = []
        for part in _parts(size, tensors[: first + beside]):
            states = _apart(part, ctx.needs_input_grad[4 : 4 + first])
            with torch.enable_grad():  # as the meter has to count the products of a backward pass too
                values.append(of_part(*states).detach())
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[4:]
        weights = {i: tensors[i] for i in range(ctx.tokens, len(tensors)) if wanted[i]}
        sums: list[torch.Tensor | None] = [None] * len(tensors)
        done = 0
        for slope, part in zip(slopes, _parts(ctx.size, tensors[: ctx.tokens]), strict=True):
            states = _apart(part, wanted[: ctx.first])
            with torch.enable_grad():
                value = ctx.of_part(*states)
            sources = {i: state for i, state in enumerate(states) if state.requires_grad} | weights
            gradients = torch.autograd.grad(value, list(sources.values()), slope, allow_unused=True)
            for i, gradient in zip(sources, gradients, strict=True):
                if gradient is None:
                    continue
                total = sums[i]
                if total is None:
                    total = sums[i] = torch.zeros_like(tensors[i], dtype=wide(tensors[i].dtype))
                (total if i >= ctx.tokens else total[done : done + len(part[0])]).add_(gradient)
            done += len(part[0])
        return None, None, None, None, *sums


def _parts(size: int, tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _apart(part: Sequence[torch.Tensor], wanted: Sequence[bool]) -> list[torch.Tensor]:
    """The tensors of a part, cut from what they were computed from; gradients are taken of the wanted ones."""
    return [each.detach().requires_grad_(i < len(wanted) and wanted[i]) for i, each in enumerate(part)]


_bodies: WeakKeyDictionary[PreTrainedModel, nn.Module | None] = WeakKeyDictionary()


def body_of(model: PreTrainedModel) -> nn.Module | None:
    """The part of a model before its end, if the end alone gives the model's logits of any tokens; tried once a model.

    None where the model is sharded, too: FSDP gathers the weights of the end for whole passes only.
    """
    if model not in _bodies:
        body, sharded = decoder(model), any(isinstance(module, FSDPModule) for module in model.modules())
        _bodies[model] = None if body is model or sharded or not _ends_alone(model, body) else body
    return _bodies[model]


def _ends_alone(model: PreTrainedModel, body: nn.Module) -> bool:
    """Compare the logits of a whole pass with those that the model's end makes of the same states, in another order."""
    modes = [(module, module.training) for module in model.modules()]
    outputs = list[Any]()
    hook = body.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    ids = torch.arange(8, device=model.device).view(2, 4) % _words(model)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            model.train(False)
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            states = getattr(outputs[-1], "last_hidden_state", None) if outputs else None
            if not isinstance(states, torch.Tensor) or states.shape[:2] != ids.shape or states.ndim != 3:
                return False
            later = deferred(model, body, outputs[-1])
            later.of(states[0, :0])  # as `weights` asks
            found = later.of(states.flatten(0, 1).flip(0)).flip(0).view_as(logits)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):  # code of any family
        return False
    finally:
        hook.remove()
        for module, training in modes:
            module.training = training
    apart = float((found - logits).float().square().mean().sqrt())
    return apart <= (_TOLERANCE if logits.dtype == torch.float32 else 0.1) * float(logits.float().std())


class Enough(Exception):
    """Ends a forward pass whose rest nobody reads."""


def body_output(model: PreTrainedModel, body: nn.Module, input_ids: torch.Tensor, *, hidden: bool = False) -> Any:
    """What the body of a model gives on a batch (B x T); `hidden`: with the residual stream. The model's end does not run."""
    outputs: list[Any] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output)
        raise Enough

    hook = body.register_forward_hook(keep)
    try:
        model(input_ids=input_ids, use_cache=False, **({"output_hidden_states": True} if hidden else {}))
    except Enough:
        pass
    finally:
        hook.remove()
    return outputs[0]


def _words(model: PreTrainedModel) -> int:
    words: int = model.config.get_text_config().vocab_size
    return words
