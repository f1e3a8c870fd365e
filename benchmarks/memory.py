"""What memory TAR takes, in bytes a weight: measured, and as `--plan` foretells it.

    .venv/bin/python -m benchmarks.memory
    .venv/bin/python -m benchmarks.memory --device cuda --size 1b

The model has random weights and the shape of SmolLM2-135M or of another size; batches are of two rows, so that weights outweigh
activations. On a CPU, measured is the peak of the resident set over two short outer steps, over what stood before the model was
loaded. On a GPU, measured is the peak of torch's allocations, and beside it the peak of the resident set over the steps, over
what stood when the model was on the GPU. Each line is a process of its own. The parts are those that are held at the foretold
peak. With `--offload` the plan counts what waits on the host apart; the resident set of a CPU has both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import SIZES
from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.tar import TAR

_FULL = FineTune(batch_size=2, learning_rate=2e-5)
_LOW = replace(_FULL, lora_rank=8)
_TAR = TAR(
    adversaries=(Adversary(attack=_FULL),),
    outer_steps=2,
    inner_steps=2,
    every=2,
    tamper_resistance_batch_size=2,
    retain_batch_size=2,
    outer_warmup_steps=0,
    retain=RetainLoss(representations="relative"),
)
_BOTH = replace(_TAR, lora_rank=8)
CASES = {
    "full-parameter, float32": (_TAR, Options()),
    "full-parameter, mixed": (_TAR, Options(precision="mixed")),
    "full-parameter, lean": (_TAR, Options(precision="lean")),
    "full-parameter, float32, offload": (_TAR, Options(offload=True)),
    "full-parameter, lean, offload": (_TAR, Options(precision="lean", offload=True)),
    "low-rank, lean, offload": (
        replace(_TAR, adversaries=(Adversary(attack=_LOW),)),
        Options(precision="lean", offload=True),
    ),
    "low-rank, float32": (replace(_TAR, adversaries=(Adversary(attack=_LOW),)), Options()),
    "low-rank, lean": (replace(_TAR, adversaries=(Adversary(attack=_LOW),)), Options(precision="lean")),
    "low-rank both, float32": (_BOTH, Options()),
    "low-rank both, lean": (_BOTH, Options(precision="lean")),
    "low-rank both, lean, offload": (_BOTH, Options(precision="lean", offload=True)),
}
"""adversaries and precision -> the safeguard, which trains all weights but where both are low-rank, and how it is run"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="135m", choices=[size for size in SIZES if size not in ("testbed", "5m")])
    parser.add_argument("--only", default="", help="cases whose name has this")
    given = parser.parse_args()
    print(
        f"{given.size} on {given.device}\n\n| adversaries, precision | measured | foretold | held at the foretold peak |"
    )
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.size)
        for name in CASES:
            if given.only in name:
                found = apart("measured", name, folder, given.device)
                print(line(name, found, apart("foretold", name, folder, given.device)), flush=True)


def line(name: str, measured: dict[str, int], foretold: dict[str, Any]) -> str:
    """A row of the table, in bytes a weight."""
    weights = foretold.pop("count")
    here, waiting = ({p: size / weights for p, size in foretold[where].items()} for where in ("cpu", "away"))
    parts = ", ".join(f"{part} {size:.1f}" for part, size in here.items() if size >= 0.05)
    if waiting:
        parts += f"; on the host {sum(waiting.values()):.1f}: "
        parts += ", ".join(f"{part} {size:.1f}" for part, size in waiting.items() if size >= 0.05)
    host = f", host {measured['host'] / weights:.1f}" if "host" in measured else ""
    return f"| {name} | {measured['peak'] / weights:.1f}{host} | {sum(here.values()):.1f} | {parts} |"


def apart(what: str, name: str, folder: str, device: str) -> dict[str, Any]:
    """A figure, from a process of its own."""
    run = [sys.executable, "-m", "benchmarks.memory", what, name, folder, device]
    ended = subprocess.run(run, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{name}, {what}: {ended.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def make(folder: Path, size: str) -> None:
    """A small domain, and a random model of that shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from holdfast.testbed.folder import write_domain
    from holdfast.testbed.models import make_tokenizer
    from holdfast.testing.bench import SMALL

    torch.manual_seed(0)
    write_domain(folder, 5, SMALL, "knowledge")
    LlamaForCausalLM(LlamaConfig(**SIZES[size].shape, max_position_embeddings=8192)).save_pretrained(folder / "model")
    make_tokenizer(()).save_pretrained(folder / "model")


def measured(name: str, folder: Path, device: str) -> dict[str, int]:
    """The peak in bytes over what this process has before the model is loaded; on a GPU the host's too, over what it has then."""
    from holdfast.core.domain import Domain
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.engine.costs import Memory
    from holdfast.engine.session import open_session
    from holdfast.runs.memory import resident

    torch.set_num_threads(1)
    safeguard, options = CASES[name]
    options = replace(options, device=device)
    checkpoint, domain, before = Checkpoint(str(folder / "model")), Domain.open(folder), resident()
    memory = Memory(device)
    session = open_session(
        checkpoint, domain, "defender", 0, options, prepare=[safeguard.prepare], base=checkpoint, initial=checkpoint
    )
    loaded, host = resident(), Memory("cpu")
    for _ in safeguard.steps(session.model, session.data, session.run):
        pass
    if device == "cpu":
        return {"peak": (memory.peak() or 0) - before}
    return {"peak": memory.peak() or 0, "host": (host.peak() or 0) - loaded}


class _Apart(Options):
    """What is offloaded is on a device of torch's for tests, so that it is counted apart."""

    @property
    def aside(self) -> str | None:
        return "away" if self.offload else None


def foretold(name: str, folder: Path, device: str) -> dict[str, Any]:
    """The parts of the foretold peak without the process itself, and of what waits aside, and the number of weights."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    from holdfast.core.domain import Domain
    from holdfast.core.model_size import count_weights
    from holdfast.engine import lean
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.engine.rehearsal import rehearse

    if device != "cpu":
        lean._PARTS.clear()  # lean optimizers step in larger parts on a GPU
    _setup_privateuseone_for_python_backend("away")
    safeguard, options = CASES[name]
    checkpoint, apart = Checkpoint(str(folder / "model")), _Apart(**vars(options))
    peaks = rehearse(
        safeguard, checkpoint, Domain.open(folder), "defender", apart,
        prepare=[safeguard.prepare], base=checkpoint, initial=checkpoint,
    )  # fmt: skip
    parts = {where: dict(peaks[where].parts) if where in peaks else {} for where in ("cpu", "away")}
    return {"count": count_weights(folder / "model"), **parts}


if __name__ == "__main__":
    if sys.argv[1:2] in (["measured"], ["foretold"]):
        what, name, folder, device = sys.argv[1:]
        print(json.dumps({"measured": measured, "foretold": foretold}[what](name, Path(folder), device)))
    else:
        main()
