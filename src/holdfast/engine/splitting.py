"""A model whose weights lie in parts on all ranks: FSDP2 by block, with the weights read on rank 0 and sent tensor by tensor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import decoder_layers
from holdfast.engine.ranks import agreed, is_first, rank_of
from holdfast.engine.sharded import local

if TYPE_CHECKING:
    from holdfast.core.types import NumberType, Precision
    from holdfast.engine.checkpoint import Checkpoint


def load(
    checkpoint: Checkpoint,
    device: str,
    precision: Precision | NumberType,
    trust_remote_code: bool,
    prepare: Sequence[Callable[[PreTrainedModel], None]] = (),
) -> PreTrainedModel:
    """The model of a checkpoint, changed by `prepare`; where there are several ranks, a part of it on each.

    Raises:
        HoldfastError: as `Checkpoint.load` and `split`.
        NonFinite: a weight is not finite.
    """
    alone = rank_of()[1] == 1
    if not alone and device.startswith("cuda"):
        _check_gpus()
    if not alone and precision == "lean":
        raise HoldfastError(
            "lean precision does not run on a model that is split over several devices; give --precision float32 or mixed"
        )
    if alone or is_first():  # one rank reads the files, on the host
        model = checkpoint.load(device if alone else "cpu", precision, trust_remote_code)
    else:
        model = checkpoint.empty(precision, trust_remote_code)
    for change in prepare:
        change(model)
    return model if alone else split(model, device)


def split(model: PreTrainedModel, device: str) -> PreTrainedModel:
    """Put a part of every weight on every rank; a pass gathers the weights of one block after the other.

    A device holds whole at most the weights of a block, or the embeddings. Every pass gives up what it gathered, so weights that
    are read between passes are never those of an earlier step.

    Args:
        model: on rank 0 with its weights, on the CPU; on the others the same model on torch's meta device.
        device: where the parts go.

    Raises:
        HoldfastError: the architecture has no list of blocks, a weight of a kind that cannot be split, or other weights where it
            is made from its config.
    """
    _check_alike(model, dict(model.named_parameters()))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    # A warning of changes in place, of which nothing here makes any: the comparisons with one process would tell.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    try:
        for block in decoder_layers(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    except (ValueError, NotImplementedError) as error:
        raise HoldfastError(
            f"a {type(model).__name__} cannot be split over several devices ({error}); run the command without torchrun and "
            "without --ranks"
        ) from error
    if not is_first():
        model.to_empty(device=device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            whole = weights.pop(name) if is_first() else torch.empty(weight.shape, dtype=weight.dtype, device=device)
            part = distribute_tensor(whole.to(device), mesh, weight.placements)  # type: ignore[attr-defined]
            local(weight).copy_(local(part))
        for module, name in list(_beside_weights(model)):
            value = getattr(module, name)
            value = value.to(device).contiguous() if is_first() else torch.empty_like(value, device=device)
            dist.broadcast(value.reshape(-1).view(torch.uint8), 0)
            setattr(module, name, value)
    torch.set_rng_state(agreed(torch.get_rng_state()))  # what fresh weights were drawn with, on rank 0 alone
    return model


def _check_gpus() -> None:
    """Raises:
    HoldfastError: the processes of this machine are more than its GPUs; nccl has no words for that.
    """
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        raise HoldfastError(
            f"the model is split over {here} processes of a machine that shows them {gpus} GPUs, and each process takes one; "
            "start fewer processes, or give the workers of a cluster more --cluster gpus"
        )


def _check_alike(model: PreTrainedModel, weights: dict[str, nn.Parameter]) -> None:
    """Give the weights on the meta device the types and the gradients' marks of rank 0's."""
    first = agreed([(name, w.shape, w.dtype, w.requires_grad) for name, w in weights.items()])
    for (name, shape, dtype, trained), mine in zip(first, weights, strict=False):
        if name != mine or shape != weights[mine].shape:
            break
        if dtype != weights[mine].dtype:
            weights[mine].data = weights[mine].data.to(dtype)
        weights[mine].requires_grad_(trained)
    else:
        if len(first) == len(weights):
            return
    raise HoldfastError(
        f"a {type(model).__name__} that is made from its config has other weights than one that is loaded, so it cannot be split "
        "over several devices; run the command without torchrun and without --ranks"
    )


def _beside_weights(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The places of tensors that are no weights: buffers, and what architectures keep as plain attributes."""
    for module in model.modules():
        for name, value in (*module._buffers.items(), *vars(module).items()):
            if isinstance(value, torch.Tensor):
                yield module, name
