"""The cost of an attack or a safeguard: FLOPs and tokens, counted during the run, and peak memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from holdfast.core.folder import weight_files
from holdfast.engine.data import Data
from holdfast.engine.exporting import by_layer
from holdfast.engine.low_rank import adapter_changes, own_weights
from holdfast.engine.ranks import rank_of, totals
from holdfast.engine.sharded import local, whole

if TYPE_CHECKING:
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Steps

Losses = TypeVar("Losses")


class Meter:
    """Counts what passes through any model between two yields of a walk; the caller's measurements do not count.

    FLOPs are those of matrix products, and tokens are those of the batches that the data handed out. Both are over all ranks,
    which have to ask for the FLOPs together. torch's own counter agrees, but changes the last bits of what it watches.
    """

    def __init__(self, data: Data) -> None:
        self._products = _Products()
        self._data = data

    @property
    def flops(self) -> float:
        """FLOPs so far."""
        return totals([self._products.flops])[0]

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self._data.tally.tokens

    def __call__(self, session: Session[Data], steps: Steps) -> Steps:
        """Count the updates of a walk; the count is saved and restored with a resumable run."""
        session.run.track(meter=self)
        yield from self.walk(steps)

    def walk(self, steps: Iterator[Losses]) -> Iterator[Losses]:
        """The same steps, counted."""
        while True:
            with self._products:
                losses = next(steps, None)
            if losses is None:
                return
            yield losses

    def state_dict(self) -> dict[str, Any]:
        return {"flops": self.flops, "tokens": self.tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._products.flops = float(state["flops"]) / rank_of()[1]
        self._data.tally.tokens = int(state["tokens"])


def flops_of(work: Callable[[], Any]) -> float:
    """FLOPs of the matrix products of a call, and of the backward pass through them where gradients are wanted."""
    products = _Products()
    with products:
        work()
    return products.flops


class _Products(TorchFunctionMode):
    """Counts the FLOPs of every matrix product that Python calls, from the shapes of what is multiplied.

    The model's family does not matter: attention counts the heads that there are, and a mixture of experts the tokens that are
    routed to each. A product of matrices m x k and k x n is 2 m k n FLOPs. Attention counts the full square of positions,
    whatever its mask hides and whichever kernel computes it. A backward pass costs a product's forward once more for each of
    its two factors whose gradient is wanted; what a backward pass computes again, to save memory or in a fused kernel, is left
    out. Convolutions, factorisations (an edit's SVD) and elementwise work are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            factors = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)]
            left, right = factors[1:3] if name in _SUMS else factors[:2]
            self._count(2.0 * output.numel() * left.shape[-1], left, right)
        elif name == "scaled_dot_product_attention":
            query, key, value = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)][:3]
            pairs = query.numel() / query.shape[-1] * key.shape[-2]
            self._count(2.0 * pairs * query.shape[-1], query, key)
            # The gradient of the scores is wanted where that of the query or the key is.
            self._count(2.0 * pairs * value.shape[-1], query if query.requires_grad else key, value)
        elif name == "einsum" and len(args) == 3:
            summed = _summed(*args)
            if summed:
                self._count(2.0 * output.numel() * math.prod(summed), *args[1:])
        return output

    def _count(self, forward: float, left: torch.Tensor, right: torch.Tensor) -> None:
        if torch._C._current_graph_task_id() >= 0:  # within a backward pass
            return
        wanted = left.requires_grad + right.requires_grad if torch.is_grad_enabled() else 0
        self.flops += forward * (1 + wanted)


def _summed(equation: str, *factors: torch.Tensor) -> list[int]:
    """The sizes of the indices that an Einstein sum of two tensors sums over."""
    terms, _, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, factor in zip(terms.split(","), factors, strict=True):
        first, _, last = term.partition("...")
        sizes |= dict(zip(first, factor.shape, strict=False)) | dict(zip(last[::-1], factor.shape[::-1], strict=False))
    return [size for index, size in sizes.items() if index not in result]


_SUMS = {"addmm", "baddbmm"}
"""Products that are added to their first argument."""

_PRODUCTS = _SUMS | {
    *("linear", "matmul", "__matmul__", "mm", "bmm"),
    *("grouped_mm", "_grouped_mm", "grouped_mm_fallback"),  # of experts: each row with the matrix of its group
}
"""Functions, methods and operators by name."""


class Memory:
    """The peak memory of a piece of work: on a GPU torch's allocations, else this process's resident set."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._since_now = True
        if device.startswith("cuda"):
            try:
                torch.cuda.reset_peak_memory_stats(device)
            except RuntimeError:  # an allocator of another make keeps no statistics
                self._since_now = False
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            except OSError:  # a container may forbid it
                self._since_now = False

    def peak(self) -> int | None:
        """The peak in bytes since this object was made (without Linux: since the process began); None where unreadable."""
        if not self._since_now:
            return None
        try:
            if self._device.startswith("cuda"):
                return torch.cuda.max_memory_allocated(self._device)
            if sys.platform == "linux":
                status = Path("/proc/self/status").read_text()
                [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
                return int(line.split()[1]) * 1024
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        except (OSError, ValueError, ImportError, RuntimeError):
            return None


def gradient_norm(model: nn.Module) -> float | None:
    """The norm of the gradients that a step left, over all weights; None where there are no gradients.

    Ranks ask for it together.
    """
    gradients = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    return norm_over_ranks(float(torch.nn.utils.get_total_norm(gradients))) if gradients else None


def norm_over_ranks(mine: float) -> float:
    """The norm of a tensor of which each rank has a part with this norm."""
    return mine if rank_of()[1] == 1 else totals([mine**2])[0] ** 0.5


@dataclass(frozen=True, kw_only=True)
class Update:
    """How the weights of a model differ from those before."""

    size: float
    """the norm of the difference, relative to the norm before"""
    share: float
    """the share of weights that moved, of those in rows (outputs of a map, words of an embedding) where any did"""


def update_size(model: PreTrainedModel, folder: Path) -> float | None:
    """The size that `update` has, or None."""
    found = update(model, folder)
    return None if found is None else found.size


def update(model: PreTrainedModel, folder: Path) -> Update | None:
    """How far the weights are from those in a checkpoint's folder; LoRA counts as merged.

    Both are read layer by layer, so memory holds no second model; ranks ask together. The attack added any bias that
    the folder lacks, and such a bias began at zero. Other weights that it lacks are left out. None where it lacks all.
    """
    moved = before = 0.0
    changed = touched = 0
    with ExitStack() as files, torch.no_grad():
        saved = {
            name: file
            for path in weight_files(folder)
            if path.suffix == ".safetensors"
            for file in (files.enter_context(safe_open(path, "pt")),)
            for name in file.keys()  # noqa: SIM118  an open file is no mapping
        }
        for name, weight, change in _as_saved(model):
            now = weight.float() if change is None else weight.float() + change.float()
            if name in saved:
                tensor = saved[name].get_tensor(name)
                if tensor.itemsize == 1:  # quantised: its scale stands elsewhere
                    continue
                was = tensor.to(weight.device, weight.dtype).float()
            elif name.endswith(".bias"):
                was = torch.zeros_like(now)
            else:
                continue
            moved += float((now - was).square().sum())
            before += float(was.square().sum())
            rows = (now != was).reshape(-1, now.shape[-1] if now.ndim else 1)
            changed += int(rows.sum())
            touched += int(rows.any(1).sum()) * rows.shape[1]
    return Update(size=(moved / before) ** 0.5, share=changed / touched if touched else 0.0) if before else None


def _as_saved(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """Each weight and LoRA's change of it, by the names and in the shapes of transformers' files, where experts may lie apart."""
    changes = adapter_changes(model)
    for layer in by_layer(own_weights(model)):
        own = {name: whole(weight.detach()) for name, weight in layer.items()}
        saved = revert_weight_conversion(model, own)
        added = {
            name: whole(changes[name]()) if name in changes else torch.zeros_like(own[name]) for name in own if changes
        }
        added = revert_weight_conversion(model, added)
        yield from ((name, weight, added.get(name)) for name, weight in saved.items())
