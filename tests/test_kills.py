"""Campaigns whose workers and coordinators are killed at random: no record is lost, none is doubled, and all are the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.run import run_campaign
from holdfast.core.files import file_digest
from holdfast.core.locks import is_held
from holdfast.core.options import Options
from holdfast.core.records import CampaignPlan, CellResult, cell_path
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from holdfast.jobs.graph import Outcome
from tests.campaign.test_campaign import content
from tests.conftest import SmallTestbed
from tests.many_processes import learn_little
from tests.test_torchrun import ENDED

ROOT = Path(__file__).parents[1]


class Dawdles(FineTune):
    """Takes its time, so that a kill finds it at work."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for loss in super().steps(model, data, run):
            time.sleep(0.05)
            yield loss


def campaign(folder: Path) -> Campaign:
    attack = Dawdles(max_steps=8, batch_size=4)
    rates = (1e-3, 5e-4, 2e-4, 1e-4)
    return Campaign(
        models=(
            Model(label="open", path=str(folder / "model"), role="undefended"),
            Model(label="clean", path=str(folder / "never_exposed"), role="never-exposed"),
        ),
        domain=folder,
        attacks=tuple((f"rate-{rate}", Dawdles(**{**vars(attack), "learning_rate": rate})) for rate in rates),
        seeds=(0, 1),
        milestones=(0, 4, 8),
        dense=True,
    )


def start(folder: str, out: str) -> list[Outcome]:
    learn_little()  # in another Python too
    plan = replace(campaign(Path(folder)), options=Options(resumable_attacks=True))
    return run_campaign(plan, Path(out), 2, title="T", suite="s", command="c")


def coordinator(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from tests.test_kills import start; start(*sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", code, str(folder), str(out)], cwd=ROOT)


def children(process: int) -> list[int]:
    """The worker processes; multiprocessing's resource tracker is none."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    found = [int(child) for child in listed.read_text().split()] if listed.is_file() else []
    return [child for child in found if "spawn_main" in _command(child)]


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def kill_at_random(folder: Path, out: Path, kills: int, seed: int) -> None:
    """Let the campaign run, and kill a worker or the coordinator again and again; then let it end."""
    draw = random.Random(seed)
    running, killed, first = coordinator(folder, out), 0, True
    started = time.monotonic()
    while killed < kills:
        assert time.monotonic() - started < 60 + 30 * kills
        # Soon after it began, in the middle of the first runs, while records are written, towards the end.
        time.sleep(draw.uniform(0.2, 6.0 if first else 3.0))
        first = False
        if running.poll() is not None:
            # It had ended: half of what it left is taken away, so that there is something to kill again.
            assert running.returncode == 0
            for path in draw.sample(sorted((out / "cells").glob("*.jsonl")), 8):
                path.unlink()
            running, first = coordinator(folder, out), True
            continue
        workers = children(running.pid)
        if workers and draw.random() < 0.5:
            os.kill(draw.choice(workers), signal.SIGKILL)
        else:
            running.kill()
            running.wait()
            running, first = coordinator(folder, out), True
        killed += 1
    assert running.wait(timeout=240) == 0
    # A job may have lost its process twice; whoever starts it again gets the rest.
    assert coordinator(folder, out).wait(timeout=240) == 0


@pytest.mark.slow  # test_campaign.py kills a coordinator once, and test_jobs.py workers
@pytest.mark.parametrize(("kills", "seed"), [(3, 1), (50, 2)])
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_whatever_is_killed_no_record_is_lost_or_doubled(
    kills: int, seed: int, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    kill_at_random(tiny_testbed.folder, out, kills, seed)
    assert all(outcome.error is None for outcome in start(str(tiny_testbed.folder), str(undisturbed)))
    cells = CampaignPlan.read(out).cells
    assert len(set(cells)) == len(cells) == 2 * (1 + 3) + 2 * 4 * 2
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert left == {"campaign.json", *(f"cells/{cell}.jsonl" for cell in cells)}
    for cell in cells:
        there, expected = (CellResult.read(cell_path(folder, cell)) for folder in (out, undisturbed))
        assert there.status == "finished"
        assert content(there) == content(expected)
        records = [(record.step, record.evaluation, record.metric) for record in there.records]
        assert len(set(records)) == len(records)


HOLD = """
import sys, time
from pathlib import Path
from holdfast.core.locks import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_dies(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(HoldfastError, match="another holdfast is running in"):
            start(str(tiny_testbed.folder), str(tmp_path))
        holder.kill()
    assert not is_held(tmp_path)
    assert not (tmp_path / "campaign.json").exists()


DOMAINS = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from holdfast.core.files import claimed
from holdfast.testbed.folder import MARKER, write_domain
from holdfast.testbed.world import Sizes

def work(out):
    with claimed(out, MARKER):
        write_domain(out, 5, Sizes(benign=8))

folder, draw, begun = Path(sys.argv[1]), random.Random(3), time.monotonic()
work(folder / "whole")
length, kills, half, out = time.monotonic() - begun, 0, 0, folder / "killed"
while kills < 40:
    child = os.fork()
    if not child:
        work(out)
        os._exit(0)
    time.sleep(draw.uniform(0, length))
    if os.waitpid(child, os.WNOHANG)[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    half += (out / MARKER).exists() and not (out / "domain.toml").exists()
    if (out / "domain.toml").exists():
        shutil.rmtree(out)
work(out)
print(kills, half)
"""


@pytest.mark.situation("interruption", "a testbed killed while it is written")
def test_a_testbed_that_is_killed_while_it_is_written_goes_on(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("situations", 40)
    ran = subprocess.run([sys.executable, "-c", DOMAINS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    kills, half = map(int, ran.stdout.split())
    assert kills == 40
    assert half > 0
    killed, undisturbed = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "killed", tmp_path / "whole")
    )
    assert killed == undisturbed


# As many as fit into about two minutes a verb on one core.
KILLS = {"testbed": 20, "safeguard": 20, "attack": 30, "search": 8, "audit": 8, "demo": 3, "shared": 25}
_TIMES = ("seconds", "evaluation_seconds", "environment", "peak_memory", "command", "path")


def plain(value: Any) -> Any:
    """JSON without times, memory and places."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in _TIMES}
    return [plain(item) for item in value] if isinstance(value, list) else value


def whole(folder: Path) -> dict[str, Any]:
    """What a command left, by the name of the file: weights to the last bit, records and plans without their times."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix in (".json", ".jsonl"):
            files[name] = [plain(json.loads(line)) for line in path.read_text().splitlines()] if (
                path.suffix == ".jsonl"
            ) else plain(json.loads(path.read_text()))  # fmt: skip
        else:
            pages = path.suffix in (".html", ".md", ".svg", ".parquet")  # they hold times
            files[name] = None if pages else file_digest(path)
        # The last has hashes of files that hold times.
        if name in ("report.json", "confirmation/report.json", "run.json", "reproduce.json"):
            files[name] = None
    return files


def survive(verb: str, kills: int, testbed: SmallTestbed, folder: Path) -> None:
    code = [sys.executable, "-m", "tests.kill_often", str(testbed.folder), verb, str(kills), str(kills)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    ran = subprocess.run(code, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    log = (folder / "killed.log").read_text() if (folder / "killed.log").exists() else ""
    assert ran.returncode == 0, ran.stderr + log[-2000:]
    assert f"{kills} kills" in ran.stdout
    assert "Traceback" not in log
    # No start was refused, and of processes that share a model those that were left say so.
    assert {line for line in log.splitlines() if line.startswith("holdfast: ")} <= (
        {ENDED} if verb == "shared" else set()
    )
    assert whole(folder / "killed") == whole(folder / "whole")
    names = {path.name for path in folder.rglob("*")}
    assert not {name for name in names if name.endswith((".holdfast", ".lock", ".part"))}


@pytest.mark.slow
@pytest.mark.situation("interruption", "a command killed at random")
@pytest.mark.parametrize("verb", KILLS)
def test_a_command_that_is_killed_often_goes_on_to_the_same_end(
    verb: str, tiny_testbed: SmallTestbed, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("situations", KILLS[verb])
    survive(verb, KILLS[verb], tiny_testbed, tmp_path)
