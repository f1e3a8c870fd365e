"""Whether a long run of TAR grows: memory and open files of the process, minute by minute.

    .venv/bin/python -m benchmarks.steady --minutes 60

The safeguard `tar` trains an untrained model of the testbed's architecture as the command does, with its state saved every half
minute, so that losses, records and saved states of thousands of outer steps would show if one of them stayed. The first tenth
of the time is left out of the slope, since libraries fill their caches then. Memory is the resident set without the files that
are mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from holdfast.core.presets import pick
from holdfast.runs.stages import Recipe, build
from holdfast.testing import make_bench

MANY = 1_000_000
"""outer steps: more than the time allows"""


class TimeIsUp(Exception):
    """The run has had its minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long")
    minutes = parser.parse_args().minutes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOLDFAST_CACHE"] = f"{folder}/cache"
        bench = make_bench(Path(folder) / "bench")
        tar = replace(pick("holdfast.safeguards", "tar"), outer_steps=MANY)
        recipe = Recipe(model=bench.model, base=bench.model, domain=bench.folder, stages=(("tar", tar),))
        begun = time.monotonic()
        seen: list[tuple[float, int, float, int]] = []

        def watch(done: int, total: int) -> None:
            past = (time.monotonic() - begun) / 60
            if past >= len(seen):
                seen.append((past, done, anonymous(), len([*Path("/proc/self/fd").iterdir()])))
                print(
                    json.dumps(dict(zip(("minute", "outer steps", "MB", "open files"), seen[-1], strict=True))),
                    flush=True,
                )
            if past >= minutes:
                raise TimeIsUp

        with suppress(TimeIsUp):
            build(recipe, None, watch)
    settled = np.array(seen[max(1, len(seen) // 10) :])
    slope = np.polyfit(settled[:, 1], settled[:, 2], 1)[0] if len(settled) > 1 else float("nan")
    files = [row[3] for row in seen]
    print(f"{seen[-1][1]} outer steps; {1000 * slope:+.3f} MB for every 1,000; {min(files)} to {max(files)} open files")


def anonymous() -> float:
    """Memory of this process that no file backs, in MB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
