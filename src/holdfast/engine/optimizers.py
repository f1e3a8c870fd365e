"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from holdfast.core.options import check_precision
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import torch

OptimizerName = Literal[
    "adamw", "adam", "sgd", "sgd-momentum", "sgd-nesterov", "adagrad", "adadelta", "schedule-free-adamw", "lion", "muon"
]
ScheduleName = Literal["constant", "linear-warmup", "warmup-cosine", "sgdr"]


class Optimizer(Protocol):
    """What a training loop needs of an optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[torch.Tensor],
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    aside: str | None = None,
) -> Optimizer:
    """A fresh optimizer over `parameters`.

    Momentum is 0.9 for both kinds of SGD; `betas` serve the Adam family. Weight decay is decoupled for `adamw`,
    `schedule-free-adamw`, `lion` and `muon`, an L2 penalty for the rest, as in torch. `lion` (arXiv 2302.06675) steps by the
    sign of a momentum, by the whole rate in every weight. `muon` orthogonalises the momentum of matrices, embeddings too, in
    steps that are as long as AdamW's (arXiv 2502.16982); vectors follow AdamW at the same rate. Weights in bfloat16 get an
    optimizer of `engine.lean`. States wait on the device `aside` between steps (`engine.aside`); None: where the weights are.

    Raises:
        HoldfastError: the name is unknown, or weights are float16, in which small updates are lost.
    """
    optimizer: Any = _fresh(name, list(parameters), learning_rate, weight_decay, betas, aside)
    kinds: list[Any] = list(optimizer.kinds) if isinstance(optimizer, Together) else [optimizer]
    for one in kinds:
        if hasattr(one, "register_load_state_dict_pre_hook"):
            one.register_load_state_dict_pre_hook(_own_parts)
    if aside is not None and all(hasattr(one, "state") for one in kinds):
        from holdfast.engine.aside import AsideOptimizer

        apart = [AsideOptimizer(one, aside) for one in kinds]
        optimizer = Together(apart) if isinstance(optimizer, Together) else apart[0]
    return cast(Optimizer, optimizer)


def _own_parts(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state with this rank's parts of what the file has whole, for weights that are sharded."""
    import torch

    from holdfast.engine.sharded import as_sharded, part_of

    saved = [index for group in state["param_groups"] for index in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    own = dict(state["state"])
    for index, weight in zip(saved, weights, strict=False):  # torch itself says where their numbers differ
        own[index] = {
            name: as_sharded(part_of(value, weight), weight)
            if isinstance(value, torch.Tensor) and value.shape == weight.shape
            else value
            for name, value in own.get(index, {}).items()
        }
    return {**state, "state": {index: values for index, values in own.items() if values}}


def _fresh(
    name: OptimizerName,
    weights: list[torch.Tensor],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    aside: str | None,
) -> Any:
    import torch

    if any(weight.dtype == torch.float16 for weight in weights):
        check_precision("float16")
    if any(weight.dtype == torch.bfloat16 for weight in weights):
        from holdfast.engine.lean import LeanOptimizer

        return LeanOptimizer(
            name,
            weights,
            lambda points: make_optimizer(name, points, learning_rate, weight_decay=weight_decay, betas=betas),
            aside,
        )
    match name:
        case "adamw":
            return torch.optim.AdamW(weights, learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(weights, learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(weights, learning_rate, weight_decay=weight_decay)
        case "sgd-momentum":
            return torch.optim.SGD(weights, learning_rate, momentum=0.9, weight_decay=weight_decay)
        case "sgd-nesterov":
            return torch.optim.SGD(weights, learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)
        case "adagrad":
            return torch.optim.Adagrad(weights, learning_rate, weight_decay=weight_decay)
        case "adadelta":
            return torch.optim.Adadelta(weights, learning_rate, weight_decay=weight_decay)
        case "schedule-free-adamw":
            import schedulefree

            return schedulefree.AdamWScheduleFree(weights, learning_rate, betas=betas, weight_decay=weight_decay)
        case "lion":
            import lion_pytorch

            return lion_pytorch.Lion(weights, learning_rate, weight_decay=weight_decay)
        case "muon":
            matrices, vectors = ([p for p in weights if (p.ndim == 2) is flat] for flat in (True, False))
            kinds: list[torch.optim.Optimizer] = []
            if matrices:
                kinds.append(
                    torch.optim.Muon(matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
                )
            if vectors:
                kinds.append(
                    torch.optim.AdamW(vectors, learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
                )
            return Together(kinds)
    raise HoldfastError(f"{name!r} is not an optimizer")


class Together:
    """Several optimizers, each over other weights, that act as one."""

    def __init__(self, kinds: Sequence[Any]) -> None:
        self.kinds = list(kinds)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for kind in self.kinds for group in kind.param_groups]

    def step(self) -> None:
        for kind in self.kinds:
            kind.step()

    def zero_grad(self) -> None:
        for kind in self.kinds:
            kind.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"kinds": [kind.state_dict() for kind in self.kinds]}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        for kind, state in zip(self.kinds, state_dict["kinds"], strict=True):
            kind.load_state_dict(state)


def schedule_factor(name: ScheduleName, step: int, total: int, warmup: int = 0, period: int | None = None) -> float:
    """The factor of the learning rate at update `step` (counted from 0) of `total`.

    `warmup` updates rise linearly from 1/warmup to 1; `constant` has none. After them `linear-warmup` stays at 1,
    `warmup-cosine` falls to 0 at `total`, and `sgdr` (arXiv 1608.03983, T_mult 1) falls from 1 to 0 every `period` updates.
    """
    if name == "constant":
        return 1.0
    if step < warmup:
        return (step + 1) / warmup
    if name == "linear-warmup":
        return 1.0
    done, length = step - warmup, max(total - warmup, 1)
    if name == "sgdr":
        length = period or max(length // 4, 1)
        done %= length
    return 0.5 * (1 + math.cos(math.pi * done / length))


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def training_point(optimizer: Optimizer) -> None:
    """Move the weights to where gradients are taken: schedule-free optimizers differ between the two, others do not."""
    if hasattr(optimizer, "train"):
        optimizer.train()


def published_point(optimizer: Optimizer) -> None:
    """Move the weights to what would be published: the averaged iterate of a schedule-free optimizer."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()
