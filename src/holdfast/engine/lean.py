"""Lean precision: weights of two bytes, optimizer states of one, and no update that is lost.

An optimizer of any kind steps in float32, one part of the weights at a time. The new weights are rounded at random
(`engine.rounding`), and the states are packed (`engine.packed`). Gradients that add up over microbatches or terms are float32, so
such a sum loses nothing either (`engine.sharded.expect`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from holdfast.core.types import HoldfastError
from holdfast.engine.aside import carry
from holdfast.engine.heap import give_back
from holdfast.engine.optimizers import Optimizer, OptimizerName, Together, published_point, training_point
from holdfast.engine.packed import Packed
from holdfast.engine.rounding import rounded
from holdfast.engine.sharded import local

_PARTS, _PART = {"cpu": 2**18}, 2**24
"""values that are in float32 at once, with their states: few on a CPU, whose cache holds them, many elsewhere, where a call costs
more than the values; a matrix of muon is never cut"""
_SWEEP = 16
"""parts after which the heap is swept: without it lean TAR takes a quarter more on a CPU, and more often costs more time"""
_SMALL = 4096
"""a state of fewer values stays in float32, as in bitsandbytes: norms and biases weigh nothing and matter"""
_ROOTS = {"exp_avg_sq", "square_avg", "acc_delta", "sum"}
"""states of torch's optimizers that are sums or means of squares; they are packed as roots, which have half the decades
(arXiv 2602.23349)"""
_SIGNED = {"exp_avg", "momentum_buffer"}


def keep_gradients_whole(model: nn.Module) -> None:
    """Let the gradients of a model be float32 whatever its weights are."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.grad_dtype = torch.float32


class LeanOptimizer:
    """An optimizer of bfloat16 weights that steps in float32, part by part; its states are packed between steps.

    The point of a schedule-free optimizer lies between two others, and rounding at every step would move it. Its weights are
    therefore a rounded copy of a float32 point, which takes eight bytes a weight more.
    """

    def __init__(
        self,
        name: OptimizerName,
        weights: Sequence[torch.Tensor],
        make: Callable[[list[torch.Tensor]], Optimizer],
        aside: str | None = None,
    ) -> None:
        """
        Args:
            name: of the optimizer.
            weights: what is updated.
            make: a fresh optimizer over float32 weights.
            aside: the device that the states of a part wait on until the part is updated; None: that of the weights.

        Raises:
            HoldfastError: muon, which needs whole matrices, would update a sharded one.
        """
        if name == "muon" and any(isinstance(weight, DTensor) and weight.ndim == 2 for weight in weights):
            raise HoldfastError("muon needs whole matrices, so it does not go with lean precision and sharding at once")
        # A stream of its own: the run's draws are those of the same run in float32.
        self._generator = torch.Generator(weights[0].device).manual_seed(int(torch.randint(2**62, ())))
        kept = name == "schedule-free-adamw"
        self._parts = [_Part(pieces, make, kept, aside) for pieces in _parts(weights, whole=name == "muon")]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.optimizer.param_groups]

    def step(self) -> None:
        for part in self._one_by_one():
            part.step(self._generator)

    def train(self) -> None:
        for part in self._one_by_one():
            part.turn(training_point, self._generator)

    def eval(self) -> None:
        for part in self._one_by_one():
            part.turn(published_point, self._generator)

    def _one_by_one(self) -> Iterator[_Part]:
        """The parts, each with its states beside the weights; what they leave in the heap of a CPU is given back now and then."""
        for index, part in enumerate(self._parts):
            with part.here():
                yield part
            if index % _SWEEP == 0:
                give_back()
        give_back()

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state(), "parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self._generator.set_state(state_dict["generator"])
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


@dataclass(frozen=True)
class _Piece:
    """A weight, or a run of a weight's values."""

    weight: torch.Tensor
    run: tuple[int, int] | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This piece of a tensor of the weight's shape; a view, where the tensor is contiguous."""
        flat = local(tensor.detach())
        return flat if self.run is None else flat.reshape(-1)[slice(*self.run)]


def _parts(weights: Sequence[torch.Tensor], whole: bool) -> Iterator[list[_Piece]]:
    """The weights in parts; `whole`: a matrix stays a matrix, and is a part of its own."""
    part, size = list[_Piece](), 0
    most = _PARTS.get(weights[0].device.type, _PART)
    for weight in weights:
        values = local(weight.detach())
        if whole and weight.ndim == 2:
            yield [_Piece(weight, None)]
            continue
        cut = values.is_contiguous()
        for begin in range(0, values.numel(), most if cut else max(values.numel(), 1)):
            end = min(begin + most, values.numel()) if cut else values.numel()
            if part and size + end - begin > most:
                yield part
                part, size = [], 0
            part.append(_Piece(weight, (begin, end) if cut else None))
            size += end - begin
    if part:
        yield part


class _Part:
    """Pieces that are in float32 at once, and the optimizer over them."""

    def __init__(
        self,
        pieces: Sequence[_Piece],
        make: Callable[[list[torch.Tensor]], Optimizer],
        kept: bool,
        aside: str | None,
    ) -> None:
        self._pieces, self._kept, self._aside = pieces, kept, aside
        self._points: list[torch.Tensor] = [nn.Parameter(self._nothing(piece)) for piece in pieces]
        self._packed: list[dict[str, Packed]] = [{} for _ in pieces]
        self.optimizer = make(self._points)
        kinds: Any = self.optimizer.kinds if isinstance(self.optimizer, Together) else [self.optimizer]
        self._kind = {point: kind for kind in kinds for group in kind.param_groups for point in group["params"]}
        for point, piece, packed in zip(self._points, pieces, self._packed, strict=True):
            if kept:
                point.data = piece.of(piece.weight).to(torch.float32, copy=True)
            self._pack(point, packed, None)  # some begin with a state
        self._waiting: list[torch.Tensor] = []
        """the float32 points while they are aside; a point then takes no memory on the device"""
        self._leave()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within the block the states are where the weights are."""
        device = self._points[0].device
        if self._aside is not None:
            self._carry(device)
            for point, value in zip(self._points, self._waiting, strict=False):
                point.data = value.to(device)
        yield
        self._leave()

    def _leave(self) -> None:
        if self._aside is None:
            return
        self._carry(self._aside)
        if self._kept:
            self._waiting = [point.data.to(self._aside) for point in self._points]
            for piece, point in zip(self._pieces, self._points, strict=True):
                point.data = self._nothing(piece)

    def _carry(self, device: str | torch.device) -> None:
        for kind in {id(kind): kind for kind in self._kind.values()}.values():
            carry(kind.state, device)
        self._packed = [
            {name: Packed(p.codes.to(device), p.scales.to(device)) for name, p in packed.items()}
            for packed in self._packed
        ]

    def step(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            active = [
                each
                for each in zip(self._pieces, self._points, self._packed, strict=True)
                if each[0].weight.grad is not None
            ]
            for piece, point, packed in active:
                values = piece.of(piece.weight)
                if not self._kept:
                    point.data = values.to(torch.float32, copy=True)
                assert piece.weight.grad is not None
                point.grad = piece.of(piece.weight.grad).float()
                for name, state in packed.items():
                    root = state.unpacked(name in _SIGNED, values.shape)
                    self._kind[point].state[point][name] = root.square_() if name in _ROOTS else root
            self.optimizer.step()
            for piece, point, packed in active:
                self._pack(point, packed, generator)
                self._write(piece, point, generator)
                point.grad = None

    def turn(self, change: Callable[[Optimizer], None], generator: torch.Generator) -> None:
        """Move the weights to where gradients are taken, or to what would be published."""
        if not self._kept:
            return
        with torch.no_grad():
            change(self.optimizer)
            for piece, point in zip(self._pieces, self._points, strict=True):
                self._write(piece, point, generator)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "packed": [{name: (p.codes, p.scales) for name, p in packed.items()} for packed in self._packed],
            "points": self._waiting or ([point.detach() for point in self._points] if self._kept else []),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        device = self._points[0].device
        self._packed = [
            {name: Packed(codes.to(device), scales.to(device)) for name, (codes, scales) in packed.items()}
            for packed in state["packed"]
        ]
        for point, saved in zip(self._waiting or self._points, state["points"], strict=False):
            point.data.copy_(saved)
        if self._aside is not None:
            self._carry(self._aside)

    def _write(self, piece: _Piece, point: torch.Tensor, generator: torch.Generator) -> None:
        piece.of(piece.weight).copy_(rounded(point.detach(), piece.weight.dtype, generator))
        if not self._kept:
            point.data = self._nothing(piece)

    def _pack(self, point: torch.Tensor, packed: dict[str, Packed], generator: torch.Generator | None) -> None:
        states = self._kind[point].state.get(point, {})
        for name in sorted(states.keys() & (_ROOTS | _SIGNED)):
            if states[name].numel() >= _SMALL:
                state = states.pop(name)
                packed[name] = Packed.of(state.sqrt() if name in _ROOTS else state, name in _SIGNED, generator)

    @staticmethod
    def _nothing(piece: _Piece) -> torch.Tensor:
        """A tensor of the piece's shape that takes no memory."""
        values = piece.of(piece.weight)
        return torch.zeros((), device=values.device).expand(values.shape)
