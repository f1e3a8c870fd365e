"""A campaign on a real SLURM and a real Ray: the records are those of this machine's processes, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from holdfast.attacks.finetune import FineTune
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.run import run_campaign
from holdfast.cli.app import main
from holdfast.core.options import Options
from holdfast.core.records import CampaignPlan, CellResult, cell_path
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data
from holdfast.engine.run import Run
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Job
from holdfast.jobs.ray import Ray
from holdfast.jobs.run import run_jobs
from holdfast.jobs.slurm import Slurm
from tests import clusters
from tests.campaign.test_campaign import content
from tests.clusters import wait_until
from tests.conftest import SmallTestbed
from tests.jobs.test_local import die_at_first, refuse, trace
from tests.many_processes import learn_little

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MARKS = "HOLDFAST_TEST_MARKS"
"""names the folder where every process that is at work leaves its number; workers take over variables that begin so"""


class Dawdles(FineTune):
    """Takes its time, so that a kill finds it at work, and says where it works."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Generator[float]:
        for loss in super().steps(model, data, run):
            if marks := os.environ.get(MARKS):
                (Path(marks) / str(os.getpid())).touch()
            time.sleep(0.5)
            yield loss


def campaign(folder: Path) -> Campaign:
    attacks = {f"rate-{rate}": Dawdles(max_steps=24, batch_size=4, learning_rate=rate) for rate in (1e-3, 1e-4)}
    return Campaign(
        models=(Model(label="open", path=str(folder / "model"), role="undefended"),),
        domain=folder, attacks=attacks, seeds=(0,), milestones=(0, 24), options=Options(resumable_attacks=True),
    )  # fmt: skip


def start(folder: str, out: str, where: Workers) -> list[str]:
    """Run the campaign; the errors."""
    learn_little()  # in another Python too
    outcomes = run_campaign(campaign(Path(folder)), Path(out), where)
    return [outcome.error for outcome in outcomes if outcome.error is not None]


@dataclass
class Cluster:
    """One of the two, and how to harm it."""

    option: list[str]
    """of a command"""
    where: Callable[[Path], Workers]
    """with two workers, for a run in a folder"""
    kill_node: Callable[[], None]
    """a node with a worker"""
    mend_node: Callable[[], None]


@contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    if reason := clusters.missing():
        pytest.skip(reason)
    with clusters.slurm(folder) as cluster:
        yield Cluster(
            option=["--executor", "slurm", "--cluster", "host=localhost", "--cluster", "minutes=30"],
            where=lambda out: Slurm(workers=2, folder=out / "slurm", host="localhost", minutes=30),
            kill_node=cluster.kill_node, mend_node=cluster.mend_node,
        )  # fmt: skip


@contextmanager
def ray(folder: Path) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as RayCluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = RayCluster(initialize_head=True, head_node_args=small)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8)]
    try:
        yield Cluster(
            option=["--executor", "ray", "--cluster", f"address={cluster.address}"],
            where=lambda out: Ray(workers=2, address=cluster.address),
            kill_node=lambda: cluster.remove_node(nodes.pop(), allow_graceful=False),
            mend_node=lambda: nodes.append(cluster.add_node(num_cpus=1, object_store_memory=10**8)),
        )
    finally:
        cluster.shutdown()


KINDS = {"slurm": slurm, "ray": ray}


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    try:
        with KINDS[request.param](tmp_path_factory.mktemp(request.param)) as cluster:
            yield cluster
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def assert_equal_records(one: Path, other: Path) -> None:
    cells = CampaignPlan.read(one).cells
    assert CampaignPlan.read(other).cells == cells
    for cell in cells:
        there, expected = (CellResult.read(cell_path(folder, cell)) for folder in (one, other))
        assert (there.status, there.reason) == ("finished", "")
        assert content(there) == content(expected)


@pytest.fixture(scope="module")
def audited(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """An audit by processes of this machine: the command without where it runs, and its folder."""
    folder = tmp_path_factory.mktemp("audited")
    suite = "".join(
        f'[[attacks]]\npreset = "{name}"\nmax_steps = 4\n' for name in ("full-adamw-1e-3", "lora-r4-adamw-5e-3")
    )
    (folder / "suite.toml").write_text(suite, encoding="utf-8")
    words = [
        "audit", "--model", f"{tiny_testbed.folder}/never_exposed", "--undefended", f"{tiny_testbed.folder}/model",
        "--domain", str(tiny_testbed.folder), "--suite", str(folder / "suite.toml"), "--seeds", "1", "--milestones", "0,4",
    ]  # fmt: skip
    assert main([*words, "--out", str(folder / "local")]) == 0
    return words, folder / "local"


def test_an_audit_has_the_same_records_and_the_same_status(
    cluster: Cluster, audited: tuple[list[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, local = audited
    assert main([*words, *cluster.option, "--workers", "2", "--out", str(tmp_path / "out")]) == 0
    assert_equal_records(tmp_path / "out", local)
    said = []
    for folder in (tmp_path / "out", local):
        capfd.readouterr()
        assert main(["audit", "--status", str(folder)]) == 0
        said.append(capfd.readouterr().out.replace(str(folder), "").splitlines()[0])
    assert said[0] == said[1]


def test_what_fails_costs_itself_and_what_waits_for_it(cluster: Cluster, tmp_path: Path) -> None:
    refused = Job(name="refused", call=refuse)
    jobs = [
        Job(name="fine", call=trace), refused, Job(name="after", call=trace, after=(refused,)),
        Job(name="once", call=die_at_first, arguments={"marker": tmp_path / "marker"}),
    ]  # fmt: skip
    outcomes = {job.name: outcome for job, outcome in run_jobs(jobs, cluster.where(tmp_path)).items()}
    assert outcomes["refused"].error == "this is refused; give another --out"
    assert outcomes["after"].error == "not run, because refused failed"
    assert outcomes["once"].result == "done"
    assert outcomes["fine"].result.threads == 1
    assert outcomes["fine"].result.pid != os.getpid()


@pytest.mark.situation("interruption", "a worker, a node or the coordinator of a cluster killed")
def test_whatever_is_killed_the_campaign_goes_on_to_the_same_records(
    cluster: Cluster,
    undisturbed: Path,
    tiny_testbed: SmallTestbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("situations", 3)
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    monkeypatch.setenv(MARKS, str(marks))

    def at_work(but: set[int]) -> list[int]:
        """Workers that take a step, other than those known."""
        found = {int(path.name) for path in marks.iterdir()} - but
        return [process for process in found if Path(f"/proc/{process}").exists()]

    def coordinator() -> subprocess.Popen[str]:
        code = (
            "import sys; from pathlib import Path; from tests.jobs.test_clusters import *\n"
            "if __name__ == '__main__': print(start(*sys.argv[1:3], eval(sys.argv[3])))"
        )
        words = [str(tiny_testbed.folder), str(out), repr(cluster.where(out)).replace("PosixPath", "Path")]
        return subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    running = coordinator()
    wait_until(lambda: bool(at_work(set())), "a first step")
    [first, *_] = at_work(set())
    os.kill(first, signal.SIGKILL)
    known = {int(path.name) for path in marks.iterdir()}
    wait_until(lambda: bool(at_work(known)) or running.poll() is not None, "a step after the kill of a worker")
    assert running.poll() is None
    cluster.kill_node()
    known = {int(path.name) for path in marks.iterdir()}
    cluster.mend_node()
    wait_until(lambda: bool(at_work(known)) or running.poll() is not None, "a step after the kill of a node")
    if running.poll() is None:
        running.kill()
    running.wait()
    wait_until(lambda: not at_work(set()), "the end of the workers")
    done = {path.name for path in (out / "cells").glob("*.jsonl")}
    again = coordinator()
    said, _ = again.communicate(timeout=600)
    assert (again.returncode, said.strip().splitlines()[-1]) == (0, "[]")
    assert done < {path.name for path in (out / "cells").glob("*.jsonl")}, "nothing was left to do after the kills"
    assert_equal_records(out, undisturbed)


@pytest.fixture(scope="module")
def undisturbed(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The campaign by processes of this machine."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(str(tiny_testbed.folder), str(out), 2) == []
    return out


def test_what_slurm_refuses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with slurm(tmp_path / "cluster" if (tmp_path / "cluster").mkdir() is None else tmp_path):
        where = Slurm(workers=2, folder=tmp_path / "slurm", partition="nowhere")
        with pytest.raises(HoldfastError, match=r"SLURM refused the workers \(.*[Ii]nvalid partition.*--cluster"):
            run_jobs([Job(name=str(index), call=trace) for index in range(2)], where)
        monkeypatch.setattr("holdfast.jobs.slurm._ASK_EVERY", 1.0)
        unreachable = Slurm(workers=1, folder=tmp_path / "slurm", host="no-such-host.invalid", minutes=5)
        with pytest.raises(HoldfastError, match=r"ended before they took a job .*cannot be reached"):
            run_jobs([Job(name="never", call=trace)], unreachable)
