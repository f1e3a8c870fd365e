"""One program of `benchmarks.speed` in a process of its own: the outer step that it times, and its memory.

Commands come as lines of JSON, and so do the answers. Everything that a repetition makes is gone when the next begins.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.attacks.finetune import FineTune
from holdfast.core.memory import shortage
from holdfast.engine.anatomy import decoder_layers, linear_maps
from holdfast.engine.costs import Memory
from holdfast.engine.data import Encoded, Stream
from holdfast.engine.lean import keep_gradients_whole
from holdfast.engine.low_rank import insert_adapters
from holdfast.engine.matmul import multiply_with_onednn
from holdfast.engine.mixed import multiply_in_bfloat16
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.sharded import GradientSum, trainable
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.tar import TAR
from tests.reference import tar as plain

RANK, ALPHA = 16, 32.0
"""of low-rank factors, as in the paper's red team"""
RATE = 2e-5
SAMPLED = 1024
"""values of each weight's gradient that are compared with another program's, at least"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker times."""

    shape: Mapping[str, Any]
    """of a Llama, as LlamaConfig takes it"""
    rows: int
    tokens: int
    """of the longest row; the shortest has half as many"""
    precision: str
    plain: bool
    """the transcription, in place of holdfast"""
    compiled: bool
    low_rank: bool
    """adversary and safeguard train the factors of LoRA, beside weights that stand still"""
    low_rank_adversary: bool
    inner_steps: int
    device: str
    threads: int
    matmul: str = "torch"
    adversaries: int = 1
    """an outer step"""


class Rows:
    """Random rows under the roles that TAR asks for, in place of `engine.data.Data`."""

    def __init__(self, rows: Mapping[str, Sequence[Encoded]], device: str) -> None:
        self.rows, self.device = dict(rows), device

    @staticmethod
    def drawn(job: Job) -> Rows:
        generator = torch.Generator().manual_seed(0)

        def row() -> Encoded:
            length = int(torch.randint(max(job.tokens // 2, 2), job.tokens + 1, (), generator=generator))
            ids = torch.randint(job.shape["vocab_size"], (length,), generator=generator).tolist()
            return Encoded(tuple(ids), tuple(ids))

        roles = ("forget", "forget_heldout", "retain")
        return Rows({role: [row() for _ in range(8 * job.rows)] for role in roles}, job.device)

    def renamed(self, **roles: Sequence[str]) -> Rows:
        return Rows({new: [row for old in olds for row in self.rows[old]] for new, olds in roles.items()}, self.device)

    def stream(self, name: str, *, batch_size: int, seed: int, side: None = None, disguise: None = None) -> Stream:
        return Stream(self.rows[name], batch_size, seed, pad=0, device=self.device)


def safeguard(job: Job) -> TAR:
    attack = FineTune(
        batch_size=job.rows,
        learning_rate=RATE,
        lora_rank=RANK if job.low_rank_adversary else 0,
        lora_alpha=ALPHA,
    )
    return TAR(
        outer_steps=1,
        adversaries=(Adversary(attack=attack),),
        adversaries_per_step=job.adversaries,
        inner_steps=job.inner_steps,
        every=min(4, job.inner_steps),
        tamper_resistance_batch_size=job.rows,
        retain_batch_size=job.rows,
        outer_optimizer="adamw",
        outer_warmup_steps=1,
    )


def make_model(job: Job, seed: int) -> LlamaForCausalLM:
    """A model of random weights, equal in every precision: each is a number of bfloat16."""
    config = LlamaConfig(**{**job.shape, "max_position_embeddings": 2048})
    # As holdfast loads them: short rows have plain attention on a CPU.
    attention = "eager" if job.device == "cpu" and job.tokens <= 16 else "sdpa"
    dtype = torch.bfloat16 if job.precision == "lean" else torch.float32
    with torch.device(job.device):
        model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)  # type: ignore[no-untyped-call]
    generator = torch.Generator(job.device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator, device=job.device).mul_(0.02).bfloat16())
    model.train(False)
    if job.precision == "mixed":
        multiply_in_bfloat16(model)
    if job.precision == "lean":
        keep_gradients_whole(model)
    return model


def make_models(job: Job) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The model to train, and the original model, frozen."""
    seed_everything(0)
    model, base = make_model(job, 0), make_model(job, 1).requires_grad_(False)
    if job.low_rank:
        insert_adapters(model, RANK, ALPHA, 0.0)
    if job.matmul == "onednn":
        multiply_with_onednn(model)
        multiply_with_onednn(base)
    if job.compiled:
        for layer in (*decoder_layers(model), *decoder_layers(base)):
            layer.compile()
    return model, base


def read(tar: TAR, rows: Rows, run: Run) -> plain.OuterStep:
    """The batches of an outer step, in the order in which TAR draws them."""
    x_tr = rows.stream("forget_heldout", batch_size=tar.tamper_resistance_batch_size, seed=run.seed)
    retain = rows.stream("retain", batch_size=tar.retain_batch_size, seed=run.seed + 1)
    adversaries = []
    for _ in range(tar.adversaries_per_step):
        attack, held_out = tar.draw(run.generator), next(x_tr)
        assert isinstance(attack, FineTune)
        stream = rows.stream("forget", batch_size=attack.batch_size, seed=run.inner().seed)
        adversaries.append((attack.learning_rate, [next(stream) for _ in range(tar.inner_steps)], held_out))
    return plain.OuterStep(adversaries, next(retain))


class Program:
    """The outer step of a job."""

    def __init__(self, job: Job) -> None:
        self.job, self.tar = job, safeguard(job)
        self.rows = Rows.drawn(job)

    def run(self, keep: Callable[[Iterable[torch.Tensor]], None] | None = None) -> dict[str, Any]:
        """One repetition: seconds and the peak of memory; `keep` is given the outer gradient, by weight.

        Seconds of one thread of a processor are those that the processor worked, so what else the machine does counts little.
        """
        cuda, before = self.job.device.startswith("cuda"), _resident()
        memory = Memory(self.job.device)
        model, base = make_models(self.job)
        step = (self._plainly if self.job.plain else self._holdfast)(model, base, keep)
        _wait(self.job.device)
        clock = time.process_time if not cuda and self.job.threads == 1 else time.perf_counter
        begun, started = time.perf_counter(), clock()
        step()
        _wait(self.job.device)
        seconds, wall, peak = clock() - started, time.perf_counter() - begun, memory.peak()
        return {"seconds": seconds, "wall": wall, "peak": None if peak is None else peak - (0 if cuda else before)}

    def _holdfast(self, model: Any, base: Any, keep: Callable[[Iterable[torch.Tensor]], None] | None) -> Any:
        steps = self.tar.steps(model, self.rows, Run(0, lambda: base))  # type: ignore[arg-type]
        give = GradientSum.give

        def given(gradients: GradientSum) -> None:
            give(gradients)
            if keep is not None:
                keep(weight.grad for weight in trainable(model) if weight.grad is not None)

        def step() -> None:
            with mock.patch.object(GradientSum, "give", given):
                next(iter(steps))

        return step

    def _plainly(self, model: Any, base: Any, keep: Callable[[Iterable[torch.Tensor]], None] | None) -> Any:
        tar, made = self.tar, plain.outer_gradient
        batches = read(tar, self.rows, Run(0))

        def gradient(*args: Any, **settings: Any) -> list[torch.Tensor]:
            total = made(*args, **settings)
            if keep is not None:
                keep(total)
            return total

        def step() -> None:
            with mock.patch.object(plain, "outer_gradient", gradient):
                plain.tar(
                    model, base, [batches], inner_weight_decay=0.01, outer_learning_rate=tar.outer_learning_rate,
                    outer_warmup=1, every=tar.every, rate=tar.schedule_rate,
                    tamper_weight=tar.tamper_resistance_weight, retain_weight=tar.retain_weight,
                )  # fmt: skip

        return step

    def size(self) -> dict[str, float]:
        """Weights of the model, and the tokens and the FLOPs of an outer step.

        Tokens are those that a loss is computed on, without padding, and FLOPs those of the products of these tokens with the
        weights: 2 a weight and token in a forward pass, and as many in a backward pass for each of its factors whose gradient is
        wanted. Attention's products of tokens with tokens are left out.
        """
        job, batches = self.job, read(self.tar, self.rows, Run(0))
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**job.shape))
        products = sum(found.weight.numel() for found in linear_maps(model)) + model.lm_head.weight.numel()
        trained = batches.retain.token_count
        for _, inner, x_tr in batches.adversaries:
            trained += sum(batch.token_count for batch in inner) + len(self.tar.schedule()) * x_tr.token_count
        passes = 4 if job.low_rank else 6
        return {
            "weights": sum(weight.numel() for weight in model.parameters()),
            "tokens": trained,
            "flops": products * (passes * trained + 2 * batches.retain.token_count),
        }


def sample(gradients: Iterable[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Some values of each gradient."""
    flat = (gradient.detach().reshape(-1) for gradient in gradients)
    return torch.cat([each[:: max(each.numel() // SAMPLED, 1)].float().cpu() for each in flat]).numpy()


def product_flops(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large product of matrices."""
    size = 8192 if device.startswith("cuda") else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.machine())


def _resident() -> int:
    """The resident set of this process, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def answer(command: Mapping[str, Any], program: Program | None) -> tuple[dict[str, Any], Program | None]:
    match command["do"]:
        case "device":
            device, threads = command["device"], command["threads"]
            torch.set_num_threads(threads)
            name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
            peaks = {str(d).removeprefix("torch."): product_flops(device, d) for d in (torch.float32, torch.bfloat16)}
            return {"name": name, "torch": torch.__version__, "peak": peaks}, None
        case "begin":
            job = Job(**command["job"])
            torch.set_num_threads(job.threads)
            if job.device.startswith("cuda"):
                torch.cuda.init()  # its memory has no figures before
            program = Program(job)
            kept: list[Any] = []
            first = program.run(lambda gradients: kept.append(sample(gradients)))
            np.save(command["gradient"], kept[0])
            return {**program.size(), "first": first["wall"], "peak": first["peak"]}, program
        case "again":
            assert program is not None
            return program.run(), program
    raise ValueError(command)


def main() -> None:
    # What libraries print is not an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    program: Program | None = None
    for line in sys.stdin:
        try:
            result, program = answer(json.loads(line), program)
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            result = {"error": shortage(error) or f"{type(error).__name__}: {first_line}"[:300]}
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what waits for its next turn leaves the device to the others
        answers.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
