"""What an attack or a safeguard costs: FLOPs and tokens, counted while it runs, and the most memory that it needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from holdfast.engine.data import Data
from holdfast.engine.sharded import local

if TYPE_CHECKING:
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Steps

Losses = TypeVar("Losses")


class Meter:
    """Counts what passes through any model while a walk is between two yields, and so not what the caller measures.

    FLOPs are those of matrix products, counted at every forward pass from the shapes that it really has: 2 for each weight and
    position of a linear layer, 4 times width times T^2 for attention over T positions. A backward pass costs the forward's once
    more for the gradient of the inputs and once for that of the weights, as far as these are wanted. Factorisations (an edit's
    SVD) and elementwise work are left out. torch's own counter agrees, but changes the last bits of what it watches.
    Tokens are those of the batches that the data handed out, over all ranks; FLOPs are this rank's.
    """

    def __init__(self, data: Data) -> None:
        self.flops = 0.0
        self._data = data

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
            hook = register_module_forward_hook(self._count)
            try:
                losses = next(steps, None)
            finally:
                hook.remove()
            if losses is None:
                return
            yield losses

    def _count(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, (nn.Linear, Conv1D)):
            forward = 2.0 * output.numel() / output.shape[-1] * module.weight.numel()
            wanted = (inputs[0].requires_grad, module.weight.requires_grad) if output.requires_grad else ()
            self.flops += forward * (1 + sum(wanted))
        elif type(module).__name__.endswith("Attention") and isinstance(output, tuple):
            rows, positions, width = output[0].shape
            forward = 4.0 * rows * positions**2 * width
            self.flops += forward * (3 if output[0].requires_grad else 1)

    def state_dict(self) -> dict[str, Any]:
        return {"flops": self.flops, "tokens": self.tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.flops = float(state["flops"])
        self._data.tally.tokens = int(state["tokens"])


class Memory:
    """The most memory that a piece of work needed: on a GPU what torch held there, else this process's resident set."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far

    def peak(self) -> int:
        """In bytes, since this object was made; without Linux, since the process began."""
        if self._device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self._device)
        if sys.platform == "linux":
            status = Path("/proc/self/status").read_text()
            [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
            return int(line.split()[1]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gradient_norm(model: nn.Module) -> float | None:
    """The norm of the gradients that a step left behind, over all weights of this rank; None where it left none."""
    held = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(held)) if held else None


def update_size(model: PreTrainedModel, folder: Path) -> float | None:
    """How far the weights are from those in a checkpoint's folder, relative to their own norm; LoRA counts as merged.

    The folder is read weight by weight, so no second model is held. A bias that it does not have was put in by the attack,
    and began at zero; other weights that it does not have are left out. None where it has none of them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    # peft keeps what it wraps under another name.
    held = {name.replace(".base_layer", ""): weight for name, weight in model.named_parameters()}
    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    moved = before = 0.0
    put_in = {name for name in held if name.endswith(".bias")}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118  an open file is no mapping
                put_in.discard(name)
                layer = layers.get(name)
                weight = held.get(name) if layer is None else layer.get_base_layer().weight
                if weight is None:
                    continue
                was = file.get_tensor(name).to(weight.device, weight.dtype).float()
                now = weight.float()
                for adapter in () if layer is None else layer.active_adapters:
                    now = now + layer.get_delta_weight(adapter).float()  # type: ignore[union-attr]
                moved += float((now - was).square().sum())
                before += float(was.square().sum())
    moved += sum(float(held[name].detach().float().square().sum()) for name in put_in)
    return float((moved / before) ** 0.5) if before else None
