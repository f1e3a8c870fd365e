"""What becomes of small updates in each precision, and what a step takes.

    .venv/bin/python -m benchmarks.precision

The first table is of 65,536 weights with a spread of 0.02 under AdamW; gradients are a slope and as much noise. `along` is the
part of the update along float32's, as a multiple of float32's: 1 where nothing is lost. `correction` is bfloat16 weights beside
a float32 point, rounded to the nearest, which is what a correction term comes to. The second table is a second moment after one
large gradient and 3,000 of a thousandth of it, beside weights whose gradients stay large. The third times updates of FineTune on
the testbed's architecture.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.engine.optimizers import make_optimizer
from holdfast.engine.session import open_session
from holdfast.engine.walk import drive
from holdfast.testing import bench

SHAPE = (256, 256)
START = (0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))).bfloat16()
SLOPE = 1e-3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
KINDS = ("float32", "mixed", "lean", "pure bfloat16", "correction")


def main() -> None:
    torch.set_num_threads(1)
    print("| steps | rate | precision | moved | cosine | length | along |\n|---|---|---|---|---|---|---|")
    for steps in (8, 64):
        for rate in (2e-6, 2e-5):
            whole = update("float32", rate, steps)
            for kind in KINDS:
                here = update(kind, rate, steps)
                inner = float((here * whole).sum())
                figures = (
                    float((here != 0).float().mean()),
                    inner / float(here.norm() * whole.norm()),
                    float(here.norm() / whole.norm()),
                    inner / float(whole.square().sum()),
                )
                print(f"| {steps} | {rate:g} | {kind} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
    print("\n| precision | second moment |\n|---|---|")
    for kind, value in second_moments():
        print(f"| {kind} | {value:.2g} |")
    print("\n| precision | seconds a step (median of 20) |\n|---|---|")
    for precision in ("float32", "mixed", "lean"):
        print(f"| {precision} | {step_seconds(precision):.4f} |")


def update(kind: str, rate: float, steps: int) -> torch.Tensor:
    """How the weights move."""
    torch.manual_seed(0)
    weight = nn.Parameter(START.clone() if kind in ("lean", "pure bfloat16") else START.float())
    if kind == "pure bfloat16":
        optimizer: Any = torch.optim.AdamW([weight], rate, weight_decay=0.0)
    else:
        weight.grad_dtype = torch.float32
        optimizer = make_optimizer("adamw", [weight], rate)
    for step in range(steps):
        gradient = SLOPE + 1e-3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(step + 2))
        rounded = gradient.bfloat16().float() if kind != "float32" else gradient
        weight.grad = rounded.to(weight.dtype) if kind == "pure bfloat16" else rounded
        optimizer.step()
    moved = weight.detach().bfloat16() if kind == "correction" else weight.detach()
    return moved.float() - START.float()


def second_moments() -> Iterator[tuple[str, float]]:
    """The second moment of the weights whose gradient was large once; in float32 it falls from 1e-3 to 5e-5."""

    def after(dtype: torch.dtype, make: Callable[[nn.Parameter], Any]) -> tuple[Any, nn.Parameter]:
        weight = nn.Parameter(torch.zeros(4096, dtype=dtype))
        weight.grad_dtype = None
        optimizer, steady = make(weight), torch.ones(4096)
        steady[1::2] = 1e-3
        for step in range(3001):
            gradient = torch.ones(4096) if step == 0 else steady
            weight.grad = gradient if kind != "pure bfloat16" else gradient.bfloat16()
            optimizer.step()
        return optimizer, weight

    for kind, dtype in (("float32", torch.float32), ("pure bfloat16", torch.bfloat16)):
        optimizer, weight = after(dtype, lambda weight: torch.optim.AdamW([weight], 2e-6))
        yield kind, float(optimizer.state[weight]["exp_avg_sq"][1::2].float().mean())
    kind = "lean"
    optimizer, weight = after(torch.bfloat16, lambda weight: make_optimizer("adamw", [weight], 2e-6))
    yield kind, float(optimizer._parts[0]._packed[0]["exp_avg_sq"].unpacked(False, weight.shape)[1::2].square().mean())
    try:
        import bitsandbytes
        from bitsandbytes.functional import dequantize_blockwise
    except ImportError:
        return
    kind = "bitsandbytes AdamW8bit"
    optimizer, weight = after(torch.float32, lambda weight: bitsandbytes.optim.AdamW8bit([weight], 2e-6))
    state = optimizer.state[weight]
    code, scales = state["qmap2"], state["absmax2"]
    yield kind, float(dequantize_blockwise(state["state2"], absmax=scales, code=code, blocksize=256)[1::2].mean())


def step_seconds(precision: Any) -> float:
    """The processor time of an update of the testbed's model, 16 rows."""
    place = bench()
    session = open_session(place.model, place.domain, "attacker", 0, Options(precision=precision))
    attack, times = FineTune(max_steps=22), []
    before = time.process_time()
    for _ in drive(attack.steps(session.model, session.data, session.run), session.run):
        now = time.process_time()
        times.append(now - before)
        before = now
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
