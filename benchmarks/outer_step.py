"""Where the time of TAR's outer step goes on the testbed, and how it compares with a plain transcription of algorithm 1.

    .venv/bin/python -m benchmarks.outer_step

Both are run by turns in one process on one thread, on the same batches from one untrained model: what is timed does not
depend on what the model knows. The passes are the forward and backward passes with their losses, timed inside the very
run whose total they are compared with.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from schedulefree import AdamWScheduleFree
from transformers import PreTrainedModel

from holdfast.core.domain import Domain
from holdfast.core.presets import pick
from holdfast.engine import data, losses, sharded
from holdfast.engine.run import Run, seed_everything
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.tar import TAR
from holdfast.testbed.folder import write_domain
from holdfast.testbed.models import make_model, make_tokenizer
from holdfast.testbed.world import Sizes
from tests.reference import tar as plain

PASSES = ("forward", "loss", "backward")


class Clock:
    """Exclusive seconds by (phase, activity): what runs inside a timed call is not counted to its caller."""

    def __init__(self) -> None:
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._stack = [("loop", "the rest")]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def running(self, phase: str | None, activity: str) -> Iterator[None]:
        self._switch()
        self._stack.append((phase or self._stack[-1][0], activity))
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def timed(self, owner: Any, name: str, activity: str, phase: str | None = None) -> Any:
        """A patch under which calls of `owner.name` are clocked."""
        called: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(called)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            with self.running(phase, activity):
                return called(*args, **kwargs)

        return mock.patch.object(owner, name, clocked)

    def timed_walk(self, owner: Any, name: str, activity: str, phase: str) -> Any:
        """A patch under which the generators that `owner.name` makes are clocked while they run."""
        called: Callable[..., Iterator[Any]] = getattr(owner, name)

        @functools.wraps(called)
        def clocked(*args: Any, **kwargs: Any) -> Iterator[Any]:
            walk = called(*args, **kwargs)
            while True:
                with self.running(phase, activity):
                    value = next(walk, None)
                if value is None:
                    return
                yield value

        return mock.patch.object(owner, name, clocked)


def clocked_steps(safeguard: TAR, model: PreTrainedModel, held: data.Data, run: Run, clock: Clock) -> list[float]:
    """Walk the safeguard under the clock; the seconds of each outer step."""
    patches = [
        clock.timed(type(model), "__call__", "forward"),
        clock.timed(torch.Tensor, "backward", "backward"),
        *(
            clock.timed(losses, name, "loss")
            for name in ("next_token_loss", "negative_entropy", "representation_distance")
        ),
        clock.timed_walk(TAR, "attacked", "the rest", "adversary"),
        clock.timed(TAR, "take_tamper_resistance", "the rest", "tamper resistance"),
        clock.timed(RetainLoss, "take", "the rest", "retain"),
        *(clock.timed(sharded.GradientSum, name, "gradient sums") for name in ("take", "give", "clear")),
        *(clock.timed(sharded.Snapshot, name, "snapshot") for name in ("__init__", "restore")),
        clock.timed(data.Stream, "take", "batches"),
        clock.timed(data.Stream, "batch", "batches"),
        clock.timed(torch.optim.AdamW, "step", "optimizers"),
        *(clock.timed(AdamWScheduleFree, name, "optimizers") for name in ("step", "train", "eval")),
    ]
    seconds = []
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        started = time.perf_counter()
        for _ in safeguard.steps(model, held, run):
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    return seconds


def plain_step(
    model: PreTrainedModel, base: PreTrainedModel, held: data.Data, safeguard: TAR, run: Run
) -> Callable[[], None]:
    """One outer step of the transcription, over batches that are drawn beforehand."""
    attack = safeguard.draw(run.generator)
    hazard = held.renamed(hazard=("forget",)).stream("hazard", batch_size=16, seed=run.seed)
    x_tr = held.stream("forget_heldout", batch_size=safeguard.tamper_resistance_batch_size, seed=run.seed)
    retain = held.stream("retain", batch_size=safeguard.retain_batch_size, seed=run.seed)
    batches = [next(hazard) for _ in range(safeguard.inner_steps)]
    read = plain.OuterStep([(getattr(attack, "learning_rate", 1e-3), batches, next(x_tr))], next(retain))
    return lambda: plain.tar(
        model, base, [read], inner_weight_decay=0.01, outer_learning_rate=2e-3, outer_warmup=1,
        every=safeguard.every, rate=safeguard.schedule_rate,
        tamper_weight=safeguard.tamper_resistance_weight, retain_weight=safeguard.retain_weight,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="outer steps of each, by turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, 0)
    base = copy.deepcopy(model).requires_grad_(False).train(False)
    preset: TAR = pick("holdfast.safeguards", "tar")
    with tempfile.TemporaryDirectory() as folder:
        write_domain(Path(folder), 0, Sizes())
        held = data.Data.defender(Domain.open(Path(folder)), tokenizer)
        for role in ("forget", "forget_heldout", "retain"):
            held.rows(role)
    one = replace(preset, outer_steps=1)
    clock, ours, theirs = Clock(), list[float](), list[float]()
    for turn in range(arguments.steps + 1):
        here, there = copy.deepcopy(model), copy.deepcopy(model)
        warm = turn > 0  # the first turn is for the caches and the allocator
        ours += clocked_steps(one, here, held, Run(turn, lambda: base), clock if warm else Clock())[not warm :]
        walk = plain_step(there, base, held, one, Run(turn))
        started = time.perf_counter()
        walk()
        theirs += [time.perf_counter() - started][not warm :]
    report(clock, ours, theirs)


def report(clock: Clock, ours: list[float], theirs: list[float]) -> None:
    phases = ("adversary", "tamper resistance", "retain", "loop")
    spent = {key: 1e3 * seconds / len(ours) for key, seconds in clock.seconds.items() if key[0] in phases}
    inside = {key: value for key, value in spent.items() if key != ("loop", "the rest")}
    whole = 1e3 * statistics.mean(ours)
    activities = sorted(
        {activity for _, activity in inside} - {"the rest"}, key=lambda name: (name not in PASSES, name)
    )
    print(f"one outer step of `tar`, ms (mean of {len(ours)}, one thread, torch {torch.__version__})\n")
    print(f"{'':16}" + "".join(f"{phase:>19}" for phase in phases) + f"{'all':>9}{'share':>8}")
    for activity in activities:
        row = [inside.get((phase, activity), 0.0) for phase in phases]
        print(f"{activity:16}" + "".join(f"{value:19.1f}" for value in row) + f"{sum(row):9.1f}{sum(row) / whole:8.1%}")
    passes = sum(value for (_, activity), value in inside.items() if activity in PASSES)
    rest = whole - sum(value for (_, activity), value in inside.items() if activity != "the rest")
    print(f"{'the rest':16}" + " " * 76 + f"{rest:9.1f}{rest / whole:8.1%}")
    updates = sum(value for (_, activity), value in inside.items() if activity == "optimizers")
    print(f"\na step: {whole:.0f} ms; its forward and backward passes: {passes:.0f} ms; ratio {whole / passes:.3f}")
    print(f"with the optimizers' updates: {passes + updates:.0f} ms; ratio {whole / (passes + updates):.3f}")
    plainly = 1e3 * statistics.mean(theirs)
    print(f"the plain transcription: {plainly:.0f} ms; ratio to it {plainly / whole:.2f}")


if __name__ == "__main__":
    main()
