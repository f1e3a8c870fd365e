"""One rank of a two-process gloo session: runs presets on a model sharded with FSDP2 and saves the whole weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from holdfast.attacks.base import Attack
from holdfast.core.domain import Domain
from holdfast.core.presets import collect, pick
from holdfast.engine import data
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from holdfast.safeguards.base import Safeguard
from tests.attacks.walk import distinct

STEPS = 4
USUAL = (
    "full-adamw-1e-4", "lora-r4-adamw-5e-3", "full-muon-5e-4", "full-schedule-free-1e-3", "latent-pgd-three-layers",
    "refold-then-full-adamw-1e-3", "abliterate", "clipped", "random-mapping", "tar",
)  # fmt: skip
"""One preset of each way to take a step: what the default run has."""


def plugins() -> dict[str, Attack | Safeguard]:
    """An attack of every kind, Random Mapping and TAR, cut to a few steps."""
    presets = collect("holdfast.attacks")
    attacks = {
        name: replace(preset, max_steps=STEPS, **({"lora_dropout": 0.0} if hasattr(preset, "lora_dropout") else {}))
        for name, preset in presets.items()
        if name in {*distinct(presets), *USUAL}
    }
    tar = replace(pick("holdfast.safeguards", "tar"), outer_steps=2, inner_steps=4, every=3, adversaries_per_step=2)
    mapping = replace(pick("holdfast.safeguards", "random-mapping"), outer_steps=STEPS)
    # Schedule-free and clipping see the norms and averages of whole tensors.
    clipped = replace(presets["full-adamw-1e-3"], max_steps=STEPS, max_grad_norm=0.1)
    return {
        **attacks,
        "clipped": clipped,
        "tar": tar,
        "tar-adamw": replace(tar, outer_optimizer="adamw"),
        "random-mapping": mapping,
    }


def run_all(folder: Path, shard: Callable[[PreTrainedModel], None], out: Path, names: Collection[str]) -> None:
    """Run these presets, and save the weights that each leaves."""
    domain, checkpoint = Domain.open(folder), Checkpoint(str(folder / "model"))
    for name, plugin in plugins().items():
        if name not in names:
            continue
        seed_everything(0)
        model, tokenizer = checkpoint.load_both()
        if isinstance(plugin, Attack):
            plugin.prepare(model)
        shard(model)

        def base() -> PreTrainedModel:
            held = Checkpoint(str(folder / "never_exposed")).load()
            shard(held)
            return held

        run = Run(0, base)
        rows = Data.attacker(domain, tokenizer) if isinstance(plugin, Attack) else Data.defender(domain, tokenizer)
        for _ in drive(plugin.steps(model, rows, run), run):
            pass
        weights = {
            key: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone().contiguous()
            for key, p in model.named_parameters()
        }
        if not dist.is_initialized() or dist.get_rank() == 0:
            save_file(weights, out / f"{name}.safetensors")


def fsdp(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)


def main(rank: int, port: int, folder: Path, out: Path, names: Collection[str]) -> None:
    """Under `split`, each rank sees its half of a batch; under `identical`, both see the whole, as one process does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    run_all(folder, fsdp, out / "split", names)
    whole = data.collate
    data.collate = lambda rows, pad, device, *places: whole(rows, pad, device)  # type: ignore[assignment]
    run_all(folder, fsdp, out / "identical", [name for name in USUAL if name in names])
    dist.barrier()  # gloo aborts a rank whose peer has hung up on it
    dist.destroy_process_group()
