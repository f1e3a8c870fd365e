"""What memory a plug-in takes, from a rehearsal: its own updates on tensors that have sizes and no content.

The rehearsal runs the plug-in's `steps` on a model without weights (torch's FakeTensorMode) and keeps a ledger of the storages
that are alive. What a plug-in keeps (optimizers, copies of weights, sums, references, activations, logits) is therefore never
declared, and cannot be declared wrongly. Tokens and labels are real, so that a loss sees as many tokens as it will. What Python
asks of a tensor without content (a loss, a norm) is answered by 1, or by true.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from holdfast.core.domain import Domain
from holdfast.core.folder import read_config
from holdfast.core.options import Options
from holdfast.core.types import HoldfastError, weights_of
from holdfast.engine import lean
from holdfast.engine.aside import AsideOptimizer, carry, send
from holdfast.engine.attention import chosen_attention, named_attention
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data, Encoded
from holdfast.engine.lean import LeanOptimizer, keep_gradients_whole
from holdfast.engine.low_rank import LowRankOptimizer
from holdfast.engine.mixed import multiply_in_bfloat16
from holdfast.engine.ranks import rank_of
from holdfast.engine.recomputing import recompute_layers
from holdfast.engine.run import Run
from holdfast.engine.session import Session
from holdfast.engine.sharded import GradientSum, Snapshot
from holdfast.engine.walk import Until, Walkable, walk

_MOST_PARTS = 200
"""in which a lean optimizer is rehearsed; what a part takes in float32 is then counted too high, by 0.3 bytes a weight at most"""

PARTS = (
    "weights", "references", "optimizers", "copies of weights", "sum of gradients", "gradients", "logits", "activations",
)  # fmt: skip
"""what memory is for, in the order in which it is told; `activations` are all that is nothing else"""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most memory that is taken at once on one kind of device, by part, in bytes."""

    total: int
    parts: Mapping[str, int]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are alive, by kind of device and by part."""

    def __init__(self, words: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._words = words
        self._alive: dict[str, Counter[str]] = {}
        self._entries: dict[int, tuple[str, str, int]] = {}
        self.peaks: dict[str, Peak] = {}
        self.part: str | None = None
        """what every new storage is for; None: its size and the call stack tell"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._enter(tensor)
        return output

    def move(self, tensor: torch.Tensor, part: str) -> None:
        """Count the storage of a tensor for another part."""
        key = tensor.untyped_storage()._cdata
        if key in self._entries:
            kind, before, size = self._entries[key]
            self._entries[key] = kind, part, size
            self._alive[kind][before] -= size
            self._alive[kind][part] += size

    def _enter(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._entries or not size:
            return
        kind, part = tensor.device.type, self.part or _part_of_stack()
        if part is None:
            part = "logits" if tensor.ndim > 1 and tensor.shape[-1] == self._words else "activations"
        self._entries[key] = kind, part, size
        weakref.finalize(storage, self._leave, key)
        alive = self._alive.setdefault(kind, Counter())
        alive[part] += size
        total = sum(alive.values())
        if kind not in self.peaks or total > self.peaks[kind].total:
            self.peaks[kind] = Peak(total=total, parts=dict(alive))

    def _leave(self, key: int) -> None:
        kind, part, size = self._entries.pop(key)
        self._alive[kind][part] -= size


_CALLS: Mapping[Any, str] = {
    Snapshot.__init__.__code__: "copies of weights",
    Snapshot.difference.__code__: "copies of weights",
    LowRankOptimizer.__init__.__code__: "copies of weights",
    GradientSum.take.__code__: "sum of gradients",
    GradientSum.give.__code__: "gradients",
    send.__code__: "references",
    carry.__code__: "optimizers",
    AsideOptimizer._one_by_one.__code__: "optimizers",
    LeanOptimizer.__init__.__code__: "optimizers",
    LeanOptimizer.step.__code__: "optimizers",
    LeanOptimizer.train.__code__: "optimizers",
    LeanOptimizer.eval.__code__: "optimizers",
}
_FILES = ("/torch/optim/", "/schedulefree/", "/lion_pytorch/")


def _part_of_stack() -> str | None:
    """What a new storage is for, by who asks for it."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code in _CALLS:
            return _CALLS[code]
        if any(part in code.co_filename for part in _FILES):
            return "optimizers"
        frame = frame.f_back
    return None


class _Answering(TorchFunctionMode):
    """Runs on real tensors what has no other arguments, and answers what Python asks of tensors without content."""

    asked = False
    """whether Python has asked"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        fakes = [each for each in tensors if isinstance(each, FakeTensor)]
        drawn = isinstance(kwargs.get("generator"), torch.Generator)
        if not fakes and (tensors or drawn or name in _FROM_PYTHON):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if fakes and name in _ANSWERS:
            self.asked = True
            return _ANSWERS[name](fakes[0])
        if name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            return _chosen(*args)
        return func(*args, **kwargs)


_FROM_PYTHON = {"tensor", "as_tensor", "from_numpy"}


_ANSWERS: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda tensor: 1.0 if tensor.is_floating_point() else 1,
    "__float__": lambda tensor: 1.0,
    "__int__": lambda tensor: 1,
    "__index__": lambda tensor: 1,
    "__bool__": lambda tensor: True,
    "tolist": lambda tensor: torch.ones(tensor.shape, dtype=torch.int64, device="cpu").tolist(),
}


def _chosen(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As many items of a tensor as a mask chooses; all, where nobody knows."""
    if isinstance(mask, FakeTensor):
        count = mask.numel()
    else:
        with unset_fake_temporarily():
            count = int(mask.sum())
    flat = tensor.flatten(0, mask.ndim - 1)
    return flat.index_select(0, torch.zeros(count, dtype=torch.int64, device=tensor.device))


def rehearse(
    plugin: Walkable,
    checkpoint: Checkpoint,
    domain: Domain,
    view: Literal["attacker", "defender"],
    options: Options,
    *,
    prepare: Sequence[Callable[[PreTrainedModel], None]] = (),
    base: Checkpoint | None = None,
    initial: Checkpoint | None = None,
    updates: int = 2,
) -> dict[str, Peak]:
    """The most memory that a few updates of a plug-in take, by kind of device; the arguments are as those of `open_session`.

    Every row is as long as the longest of its role.

    Raises:
        HoldfastError: a file is missing or malformed, the plug-in asks its tensors for what they hold, or there are
            several ranks.
    """
    if rank_of()[1] > 1:
        raise HoldfastError(
            "--plan foretells the memory of a model that is not split over several devices; run the command without torchrun"
        )
    tokenizer = checkpoint.load_tokenizer(options.trust_remote_code)
    words = vocabulary_of(checkpoint, options)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        Ledger(words) as ledger,
        _Answering() as answers,
        _converting_in_place(),
    ):
        model = _weightless(checkpoint, options, ledger, "weights")
        if view == "attacker":
            model.requires_grad_(True)
        for change in prepare:
            change(model)
        if options.checkpointing:
            recompute_layers(model)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(partial(_counted, ledger))  # type: ignore[no-untyped-call]
        data = (Data.attacker if view == "attacker" else Data.defender)(domain, tokenizer, options.device)
        data._encoded = _Longest()
        load_base, load_initial = (
            None if source is None else partial(_weightless, source, options, ledger, "references")
            for source in (base, initial)
        )
        run = Run(0, load_base, load_initial, options.micro_batch, options.aside)
        session = Session(model=model, tokenizer=tokenizer, data=data, run=run)
        try:
            with _in_large_parts(sum(weight.numel() for weight in model.parameters())):
                walk(session, plugin, Until(updates))
        except Exception as error:  # of whatever asks a tensor without content for more than its size
            if isinstance(error, HoldfastError) and not answers.asked:
                raise
            raise HoldfastError(
                f"the memory of a {type(plugin).__name__} cannot be foretold, because it decides by what its tensors hold; "
                "measure a short run of it"
            ) from error
    peaks: dict[str, Peak] = ledger.peaks
    return peaks


@contextmanager
def _in_large_parts(weights: int) -> Iterator[None]:
    """Let lean optimizers take at most some hundred parts of the weights: a rehearsed call costs the same whatever its size."""
    before = dict(lean._PARTS)
    lean._PARTS.update({kind: max(size, weights // _MOST_PARTS) for kind, size in before.items()})
    try:
        yield
    finally:
        lean._PARTS.update(before)


@contextmanager
def _converting_in_place() -> Iterator[None]:
    """Let modules convert weights without content, which torch cannot swap."""
    before = nn.Module._apply

    def apply(module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        convert(module, fn, recurse, {})
        return module

    def convert(
        module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool, made: dict[int, Any]
    ) -> None:
        for child in module.children() if recurse else ():
            convert(child, fn, recurse, made)
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in made:  # tied weights stay tied
                changed = fn(weight)
                made[id(weight)] = weight if changed is weight else nn.Parameter(changed.detach(), weight.requires_grad)
            module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fn(buffer)

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = before  # type: ignore[method-assign]


def _counted(ledger: Ledger, weight: torch.Tensor) -> None:
    assert weight.grad is not None
    ledger.move(weight.grad, "gradients")


def _weightless(
    checkpoint: Checkpoint, options: Options, ledger: Ledger, part: str, device: str | None = None
) -> PreTrainedModel:
    """The model that `Checkpoint.load` gives on a device, without weights; its storages are counted for `part`."""
    before, ledger.part = ledger.part, part
    folder, config = checkpoint.folder, _config(checkpoint, options)
    weights, short = weights_of(options.precision), checkpoint.positions(options.trust_remote_code) in range(129)
    try:
        attention = chosen_attention(folder, named_attention(read_config(folder)), options.device, weights, short)
        # Where a model is only kept, there may be nothing that it could be made with.
        with torch.device("meta" if device else options.device):
            model: PreTrainedModel = cast(Any, AutoModelForCausalLM).from_config(
                config, dtype=getattr(torch, weights), trust_remote_code=options.trust_remote_code, **attention
            )
        model.train(False)
        if device:
            model._apply(partial(torch.empty_like, device=device))  # type: ignore[no-untyped-call]
    finally:
        ledger.part = before
    if options.precision == "mixed":
        multiply_in_bfloat16(model)
    if options.precision == "lean":
        keep_gradients_whole(model)
    return model


def vocabulary_of(checkpoint: Checkpoint, options: Options) -> int:
    """The number of words that a model predicts."""
    words: int = _config(checkpoint, options).get_text_config().vocab_size
    return words


def _config(checkpoint: Checkpoint, options: Options) -> Any:
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=options.trust_remote_code)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is quantised becomes plain weights
    return config


class _Longest(dict[Any, list[Encoded]]):
    """Rows by role, each as long as the longest: its last token is repeated."""

    def __setitem__(self, role: Any, rows: list[Encoded]) -> None:
        length = max(len(row.ids) for row in rows)
        more = [length - len(row.ids) for row in rows]
        super().__setitem__(
            role,
            [
                replace(row, ids=row.ids + row.ids[-1:] * extra, labels=row.labels + row.labels[-1:] * extra)
                for row, extra in zip(rows, more, strict=True)
            ],
        )
