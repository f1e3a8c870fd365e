"""Run a command again and again in children that are killed, until it has come to its end.

    python -m tests.kill_often FOLDER VERB KILLS SEED

This process has loaded everything, so that a child begins at once: it is a fork that runs the command line, and its jobs itself.
The verb `shared` is a safeguard whose model two such forks share, as under torchrun. One of them is killed, or both.
Half of the kills fall anywhere in a run; the others fall a moment after a temporary file or folder has appeared, which is while
something is written.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ATTACK = ("--set", "full-adamw-1e-3.max_steps=4", "--set", "full-adamw-1e-3.batch_size=4")


def words(verb: str, folder: Path, out: Path) -> list[str]:
    """A short command of that verb."""
    given = ["--model", str(folder / "model"), "--domain", str(folder), "--out", str(out)]
    match verb:
        case "testbed":
            return ["testbed", str(out), "--seed", "5", "--benign", "8"]
        case "safeguard" | "shared":
            tar = [f"tar.{setting}" for setting in ("outer_steps=3", "inner_steps=2", "every=1")]
            settings = [word for setting in ("random-mapping.outer_steps=4", *tar) for word in ("--set", setting)]
            return ["safeguard", "random-mapping", "tar", *given, *settings]
        case "attack":
            return ["attack", "full-adamw-1e-3", *given, *ATTACK, "--resumable-attacks"]
        case "search":
            undefended = ["--undefended", str(folder / "never_exposed"), "--workers", "2"]
            return ["search", *given, *undefended, "--families", "pruning", "--trials", "3"]
        case "audit":
            controls = ["--undefended", str(folder / "never_exposed"), "--suite", "demo-2", "--seeds", "1"]
            return ["audit", *given, *controls, *ATTACK, "--milestones", "1", "--resumable-attacks"]
        case _:
            return ["demo", "--out", str(out), "--seed", "5"]


def prepare() -> None:
    """Load what a command loads, and make runs small: a tiny world, few steps, states after every update, no processes."""
    import matplotlib.figure  # noqa: F401
    import optuna  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import holdfast.campaign.run
    import holdfast.engine.walk
    import holdfast.recipes.demo
    import holdfast.recipes.run
    import holdfast.report.page
    import holdfast.runs.search.search
    import holdfast.runs.study.study
    import holdfast.runs.testbed
    from holdfast.core.presets import pick
    from holdfast.runs.suites import SUITES
    from holdfast.testbed.models import Pretraining
    from holdfast.testbed.world import Sizes
    from tests.cli.test_cli import run_here
    from tests.conftest import SMALL

    patched: Any = holdfast
    for module in (
        patched.campaign.run, patched.runs.search.search, patched.runs.study.study, patched.runs.testbed,
    ):  # fmt: skip
        module.run_jobs = run_here
    Sizes.__init__.__kwdefaults__ = asdict(SMALL)  # type: ignore[attr-defined]
    Pretraining.total_steps = lambda self, rows: 6  # type: ignore[method-assign]
    patched.engine.walk.SAVE_EVERY = 0.0
    suite = SUITES["demo-2"]
    SUITES["demo-2"] = replace(suite, attacks=("full-adamw-1e-3",))  # type: ignore[index]
    whole: Callable[..., Any] = patched.recipes.demo.study

    def study(seed: int, options: Any) -> Any:
        full = whole(seed, options)
        [part] = full.parts
        short = {"random-mapping": {"outer_steps": 3}, "tar": {"outer_steps": 2, "inner_steps": 2, "every": 1}}
        methods = tuple(replace(method, settings=short[method.label]) for method in part.methods)
        found = {"full-adamw-1e-3": replace(pick("holdfast.attacks", "full-adamw-1e-3"), max_steps=3)}
        part = replace(part, methods=methods, attacks=tuple(found), found=found, dense=False)
        return replace(full, parts=(part,), seeds=(0,), sizes=SMALL)

    patched.recipes.demo.study = study


def started(arguments: list[str], cache: Path, log: Path, ranks: int) -> list[int]:
    """Children that run the command line together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [_started(arguments, cache, log, rank, ranks, port) for rank in range(ranks)]


def _started(arguments: list[str], cache: Path, log: Path, rank: int, ranks: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    if ranks > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["HOLDFAST_CACHE"] = str(cache)
        from holdfast.cli.app import main

        status = main(arguments)
    finally:
        sys.stdout.flush()
        os._exit(status)


def temporaries(*folders: Path) -> set[str]:
    found: set[str] = set()
    for folder in folders:
        for _, inside, files in os.walk(folder):
            found |= {name for name in (*inside, *files) if name.endswith(".holdfast")}
    return found


def kill(children: list[int], draw: random.Random, length: float, watched: tuple[Path, ...]) -> bool:
    """Kill a child somewhere in the run, or all; whether the child was still running. The others end by themselves."""
    victims = children if len(children) == 1 else draw.choice([children, *([child] for child in children)])
    child = victims[0]
    begun, moment = time.monotonic(), draw.uniform(0, length)
    if draw.random() < 0.5:
        known = temporaries(*watched)
        count = draw.choice((1, 1, 2, 3, 5, 8))
        while count and time.monotonic() - begun < 2 * length and os.waitid(os.P_PID, child, _STILL) is None:
            count -= bool((now := temporaries(*watched)) - known)
            known |= now
        moment = time.monotonic() - begun + draw.uniform(0, 0.005)
    while time.monotonic() - begun < moment and os.waitid(os.P_PID, child, _STILL) is None:
        time.sleep(0.001)
    running = os.waitid(os.P_PID, child, _STILL) is None
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE
    for child in children:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "a process waits for one that was killed"
            time.sleep(0.01)
    return running


_PATIENCE = 120
"""seconds that a process may need to see that another is gone"""

_STILL = os.WEXITED | os.WNOHANG | os.WNOWAIT


def ended(arguments: list[str], cache: Path, log: Path, ranks: int) -> int:
    statuses = [os.waitpid(child, 0)[1] for child in started(arguments, cache, log, ranks)]
    return max(map(os.waitstatus_to_exitcode, statuses))


def main(folder: Path, verb: str, kills: int, seed: int) -> None:
    """Leave `whole`, undisturbed, and `killed`, killed so often, beside each other in the current folder."""
    prepare()
    begun, ranks = time.monotonic(), 2 if verb == "shared" else 1
    out, cache, log = Path("whole"), Path("whole-cache"), Path("whole.log")
    assert ended(words(verb, folder, out), cache, log, ranks) == 0, log.read_text()
    length, draw, done = time.monotonic() - begun, random.Random(seed), 0
    out, cache, log = Path("killed"), Path("killed-cache"), Path("killed.log")
    while done < kills:
        killed = kill(started(words(verb, folder, out), cache, log, ranks), draw, length, (out, cache, Path()))
        done += killed
        # What has ended, and now and then what has not, begins anew.
        if not killed or draw.random() < 0.1:
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
    assert ended(words(verb, folder, out), cache, log, ranks) == 0
    print(f"{done} kills")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
