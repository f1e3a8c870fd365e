"""What an outer step of TAR takes, beside a plain transcription of the published loop on the same machine, batches and weights.

    .venv/bin/python -m benchmarks.speed --device cuda --seconds 540

Models have random weights and the shapes of real ones. Each program has a process of its own, which forgets everything between
two repetitions, so a peak of memory is that of one outer step from its model on. The programs of a size take turns. A ratio is
the median over turns, and above 1 holdfast is faster. The first turn warms up and compares the outer gradients. A program that
does not fit is a row that says so.

The transcription (`tests/reference/tar.py`) runs in float32, under autocast, and on LoRA beside bfloat16 weights. `lean` is
compared with the transcription in float32. The share of the peak is that of a large product of matrices of the same type, in the
same run. The file is written anew after every turn.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.core.files import write_text


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of a model, and its batches."""

    shape: dict[str, Any]
    rows: int = 8
    tokens: int | None = None
    """of the longest row; None: as the user says"""
    low_rank: bool = False
    """low-rank programs run too"""
    whole: float = 0.0
    """billions of weights, about"""


def llama(
    hidden: int, layers: int, heads: int, keys: int, inner: int, words: int, tied: bool = False
) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys,
        "intermediate_size": inner, "vocab_size": words, "tie_word_embeddings": tied,
    }  # fmt: skip


SIZES = {
    "testbed": Size(shape=llama(96, 3, 4, 4, 256, 273), rows=16, tokens=12, whole=0.0004),
    "5m": Size(shape=llama(256, 4, 4, 4, 704, 4096), whole=0.005),
    "50m": Size(shape=llama(512, 10, 8, 8, 1536, 16384), whole=0.05),
    "135m": Size(shape=llama(576, 30, 9, 3, 1536, 49152, tied=True), whole=0.135),  # SmolLM2-135M
    "1b": Size(shape=llama(2048, 16, 32, 8, 8192, 128256, tied=True), low_rank=True, whole=1.24),  # Llama-3.2-1B
    "8b": Size(shape=llama(4096, 32, 32, 8, 14336, 128256), low_rank=True, whole=8.03),  # Llama-3-8B
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """What takes an outer step."""

    name: str
    precision: str
    plain: bool = False
    compiled: bool = False
    low_rank: bool = False
    low_rank_adversary: bool = False
    matmul: str = "torch"
    bytes: float = 36.0
    """a weight at the peak, about; guards a computer's memory alone"""
    beside: str | None = None
    """the program with the same arithmetic, or that in float32, with which the gradient is compared"""


PLAIN = {
    "float32": Program(name="plain float32", precision="float32", plain=True),
    "mixed": Program(name="plain mixed", precision="mixed", plain=True, bytes=40),
    "lean": Program(name="plain low-rank", precision="lean", plain=True, low_rank=True, bytes=7),
}
OURS = {
    "float32": (
        Program(name="float32", precision="float32", beside="plain float32"),
        Program(name="float32, onednn", precision="float32", matmul="onednn", beside="plain float32"),
    ),
    "mixed": (Program(name="mixed", precision="mixed", bytes=40, beside="plain mixed"),),
    "lean": (
        Program(name="lean", precision="lean", bytes=19, beside="plain float32"),
        Program(name="lean, low-rank adversary", precision="lean", low_rank_adversary=True, bytes=19),
        Program(name="lean, low-rank", precision="lean", low_rank=True, bytes=5, beside="plain low-rank"),
    ),
}
COMPILED = ", compiled"


def eager(size: Size, precisions: Sequence[str]) -> list[Program]:
    """The transcription and holdfast; the transcription in float32 is always there."""
    plainly = [PLAIN[name] for name in ("float32", *(name for name in precisions if name != "float32"))]
    found = [*plainly, *(program for name in precisions for program in OURS[name])]
    return [each for each in found if size.low_rank or not (each.low_rank or each.low_rank_adversary)]


def compiled(size: Size, precisions: Sequence[str]) -> list[Program]:
    """holdfast with blocks that torch compiles, each beside the same without."""
    found = [each for each in eager(size, precisions) if not (each.plain or each.low_rank_adversary)]
    return [
        program
        for each in found
        for program in (each, replace(each, name=each.name + COMPILED, compiled=True, beside=each.name))
    ]


class Worker:
    """A process that runs one program."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `end`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, seconds: float, **command: Any) -> dict[str, Any]:
        """The answer to a command; `error` in place of it where there is none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=max(seconds, 1.0))
        except queue.Empty:
            return {"error": "the time was up"}
        except OSError:
            line = None
        if line is not None:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if (status := self._process.wait()) < 0:
            return {"error": f"killed by signal {-status}" + (", mostly for memory" if status == -9 else "")}
        self._log.seek(0)
        return {"error": ([*filter(None, map(str.strip, self._log))] or [f"ended with {status}"])[-1][:300]}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclass
class Row:
    """What was measured of a program."""

    size: str
    program: Program
    sweep: str
    state: str = "ok"
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    gradient: Any = None


@dataclass
class Benchmark:
    """One run of the benchmark."""

    arguments: argparse.Namespace
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    spare: list[Worker] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.arguments.seconds - (time.monotonic() - self.started)

    def worker(self) -> Worker:
        return self.spare.pop() if self.spare else Worker()

    def run(self) -> None:
        asked = self.arguments
        sweeps = {"eager": eager, "compiled": compiled}
        groups = [
            (sweep, name, sweeps[sweep](SIZES[name], asked.precisions)) for sweep in asked.modes for name in asked.sizes
        ]
        worker = self.worker()
        self.machine = worker.ask(self.left, do="device", device=asked.device, threads=asked.threads)
        worker.end()
        if "error" in self.machine:
            sys.exit(f"{asked.device} cannot be used: {self.machine['error']}")
        for place, (sweep, size, programs) in enumerate(groups):
            if asked.device.startswith("cuda") and place + 1 < len(groups):
                # Processors are idle while the device works: the next programs load their libraries meanwhile.
                coming = len(programs) + len(groups[place + 1][2])
                self.spare += [Worker() for _ in range(coming - len(self.spare))]
            self.group(sweep, size, programs)
            print("\n".join(table(self.rows[-len(programs) :], self.machine)), flush=True)
        for worker in self.spare:
            worker.end()

    def group(self, sweep: str, size: str, programs: Sequence[Program]) -> None:
        """The programs of a size, by turns."""
        rows = [Row(size, program, sweep) for program in programs]
        self.rows += rows
        workers: list[tuple[Row, Worker]] = []
        with tempfile.TemporaryDirectory() as folder:
            for row in rows:
                row.state = self.obstacle(row)
                if row.state == "ok":
                    workers.append((row, self.worker()))
                    gradient = Path(folder) / f"{len(workers)}.npy"
                    self.ask(workers, row, do="begin", job=self.job(row), gradient=str(gradient))
                    row.gradient = np.load(gradient) if row.state == "ok" else None
                self.write()
            for _ in range(self.arguments.repeats):
                for row, _ in list(workers):
                    self.ask(workers, row, do="again")
                self.write()
        for _, worker in workers:
            worker.end()

    def ask(self, workers: list[tuple[Row, Worker]], row: Row, **command: Any) -> None:
        """A command to the worker of a row, which ends where the worker fails."""
        [worker] = [worker for other, worker in workers if other is row]
        answer = worker.ask(self.left, **command) if self.left > 0 else {"error": "the time was up"}
        if "error" in answer:
            row.state = answer["error"]
            workers.remove((row, worker))
            worker.end()
            return
        row.peaks += [answer["peak"]] if answer["peak"] is not None else []
        if "first" in answer:
            row.measured = answer
        else:
            row.seconds.append(answer["seconds"])

    def obstacle(self, row: Row) -> str:
        """Why a program is not run, or `ok`."""
        if self.left <= 0:
            return "skipped: the time was up"
        need = row.program.bytes * SIZES[row.size].whole * 1e9
        if self.arguments.device == "cpu" and need > (there := available()):
            return f"skipped: needs about {need / 1e9:.0f} GB, and {there / 1e9:.0f} are free"
        return "ok"

    def job(self, row: Row) -> dict[str, Any]:
        size, program, asked = SIZES[row.size], row.program, self.arguments
        names = ("precision", "plain", "compiled", "low_rank", "low_rank_adversary", "matmul")
        return {
            "shape": size.shape, "rows": size.rows, "tokens": size.tokens or asked.tokens,
            "inner_steps": asked.inner_steps, "device": asked.device, "threads": asked.threads,
            **{name: getattr(program, name) for name in names},
        }  # fmt: skip

    def write(self) -> None:
        settings = {name: value for name, value in vars(self.arguments).items() if name != "out"}
        content = {"machine": self.machine, "settings": settings, "rows": list(figures(self.rows, self.machine))}
        write_text(self.arguments.out, json.dumps(content, indent=1) + "\n")


def available() -> float:
    """The memory that is free, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return float("inf")


def figures(rows: Sequence[Row], machine: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each row as plain values, with what follows from the rows beside it."""
    for row in rows:
        beside = {other.program.name: other for other in rows if (other.size, other.sweep) == (row.size, row.sweep)}
        program, measured = row.program, row.measured
        found: dict[str, Any] = {
            "size": row.size, "program": program.name, "precision": program.precision, "compiled": program.compiled,
            "sweep": row.sweep, "state": row.state, **measured, "seconds": row.seconds, "peaks": row.peaks,
        }  # fmt: skip
        if row.seconds:
            median = statistics.median(row.seconds)
            peak = machine["peak"]["float32" if program.precision == "float32" else "bfloat16"]
            found |= {
                "median": median,
                "tokens_per_second": measured["tokens"] / median,
                "share_of_peak": measured["flops"] / median / peak,
                "to_float32": ratio(beside.get("plain float32"), row),
                "to_same": ratio(beside.get(program.beside or ""), row),
            }
            if program.compiled:
                found["compiling"] = measured["first"] - median
        if row.peaks:
            found["bytes_per_weight"] = max(row.peaks) / measured["weights"]
        other = beside.get(program.beside or "")
        if other is not None and row.gradient is not None and other.gradient is not None:
            here, there = (each.gradient.astype(np.float64) for each in (row, other))
            found["distance"] = float(np.linalg.norm(here - there) / np.linalg.norm(there))
            found["cosine"] = float(here @ there / (np.linalg.norm(here) * np.linalg.norm(there)))
        yield found


def ratio(slow: Row | None, fast: Row) -> float | None:
    """How many times as fast a program is as another, the median over turns."""
    if slow is None or slow is fast or not slow.seconds:
        return None
    return statistics.median(there / here for there, here in zip(slow.seconds, fast.seconds, strict=False))


HEADER = ("size", "program", "s a step", "tokens/s", "peak GB", "bytes/weight", "of peak", "to plain float32", "to same",
          "distance", "compiling s")  # fmt: skip


def table(rows: Sequence[Row], machine: dict[str, Any]) -> list[str]:
    """The rows as a Markdown table."""

    def cell(found: dict[str, Any], name: str, form: str) -> str:
        return format(found[name], form) if found.get(name) is not None else ""

    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for found in figures(rows, machine):
        if not found["seconds"]:
            lines.append(f"| {found['size']} | {found['program']} | {found['state']} |" + " |" * (len(HEADER) - 3))
            continue
        cells = (
            found["size"], found["program"], cell(found, "median", ".3g"), cell(found, "tokens_per_second", ".0f"),
            f"{max(found['peaks']) / 1e9:.3g}" if found["peaks"] else "", cell(found, "bytes_per_weight", ".1f"),
            cell(found, "share_of_peak", ".1%"), cell(found, "to_float32", ".2f"), cell(found, "to_same", ".2f"),
            cell(found, "distance", ".1e"), cell(found, "compiling", ".0f"),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(known: Sequence[str]) -> Any:
        def parse(text: str) -> list[str]:
            if wrong := [name for name in text.split(",") if name not in known]:
                raise argparse.ArgumentTypeError(f"{wrong[0]} is none of {', '.join(known)}")
            return text.split(",")

        return parse

    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sizes", type=names(list(SIZES)), default=list(SIZES), help="with commas between")
    parser.add_argument("--precisions", type=names(list(OURS)), default=list(OURS), help="with commas between")
    parser.add_argument("--modes", type=names(("eager", "compiled")), default=["eager", "compiled"])
    parser.add_argument("--repeats", type=int, default=3, help="turns that are timed")
    parser.add_argument("--inner-steps", type=int, default=8, help="K; the paper has 64")
    parser.add_argument("--tokens", type=int, help="of the longest row; 256 as in the paper on a GPU, else 64")
    parser.add_argument("--threads", type=int, default=1, help="of a processor")
    parser.add_argument("--seconds", type=float, default=86400.0, help="after these no further program begins")
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    arguments = parser.parse_args()
    arguments.tokens = arguments.tokens or (256 if arguments.device.startswith("cuda") else 64)
    benchmark = Benchmark(arguments)
    benchmark.run()
    benchmark.write()
    name, peaks = benchmark.machine["name"], benchmark.machine["peak"]
    print(f"\n{name}, torch {benchmark.machine['torch']}, K {arguments.inner_steps}; a large product of matrices: "
          + ", ".join(f"{flops / 1e12:.3g} TFLOP/s in {dtype}" for dtype, flops in peaks.items()) + "\n")  # fmt: skip
    print("\n".join(table(benchmark.rows, benchmark.machine)))


if __name__ == "__main__":
    main()
