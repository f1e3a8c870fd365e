"""What a command is told of a cluster: settings of the right type, or one sentence."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.campaign.cells import Campaign
from holdfast.cli.app import main
from holdfast.cli.executors import Kind, workers_of
from holdfast.core.types import HoldfastError
from holdfast.jobs.ray import Ray
from holdfast.jobs.slurm import Slurm
from holdfast.runs.search.search import Search
from holdfast.runs.study.study import Study
from tests.conftest import SmallTestbed


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a cluster."""
    for room in ("ray", "slurm"):
        monkeypatch.setattr(f"holdfast.jobs.{room}.find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def test_settings_become_what_the_executor_has(installed: None, tmp_path: Path) -> None:
    assert workers_of("local", None, 3, tmp_path) == 3
    pairs = ["partition=gpu", "account=1234", "minutes=90", "memory=2.5", "gpus=2", "cpus=8", "host=login1"]
    assert workers_of("slurm", pairs, 64, tmp_path) == Slurm(
        folder=tmp_path / "slurm", workers=64, partition="gpu", account="1234", minutes=90, memory=2.5, gpus=2, cpus=8,
        host="login1",
    )  # fmt: skip
    assert workers_of("ray", ["gpus=0.25", "address=auto"], 5, tmp_path) == Ray(workers=5, gpus=0.25, address="auto")


def test_a_worker_has_a_processor_and_a_gpu_for_each_process_that_shares_a_model(
    installed: None, tmp_path: Path
) -> None:
    slurm = Slurm(folder=tmp_path / "slurm", workers=2, cpus=4)
    assert workers_of("slurm", None, 2, tmp_path, ranks=4) == slurm
    assert workers_of("slurm", None, 2, tmp_path, ranks=4, device="cuda") == replace(slurm, gpus=4)
    assert workers_of("ray", ["cpus=8", "gpus=3"], 2, tmp_path, ranks=2, device="cuda") == Ray(cpus=8, gpus=3)
    assert workers_of("ray", ["gpus=0.5"], 2, tmp_path, device="cuda") == Ray(gpus=0.5)
    with pytest.raises(HoldfastError, match="gpus=1 is too few for --ranks 2: each process takes a GPU of its own"):
        workers_of("slurm", ["gpus=1"], 2, tmp_path, ranks=2, device="cuda")


def test_torchrun_says_itself_how_many_processes_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HoldfastError, match="--ranks does not go with torchrun"):
        workers_of("local", None, 1, tmp_path, ranks=2)


def test_the_memory_of_a_worker_can_come_from_the_plan(installed: None, tmp_path: Path) -> None:
    slurm = Slurm(folder=tmp_path / "slurm", memory=2.4)
    assert workers_of("slurm", ["memory=auto"], 2, tmp_path, foretell=lambda: 2_310_000_000) == slurm
    assert workers_of("ray", ["memory=3"], 2, tmp_path, foretell=lambda: 1 // 0) == Ray(memory=3)
    with pytest.raises(HoldfastError, match="plans for a model on one device; give a number of GB with --ranks"):
        workers_of("slurm", ["memory=auto"], 2, tmp_path, ranks=2, foretell=lambda: 1)


def test_an_audit_asks_its_plan(
    installed: None, tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def foretold(console: object, campaign: Campaign) -> int:
        raise HoldfastError(f"asked of {len(campaign.attacks)} attacks on {campaign.models[-2].label}")

    monkeypatch.setattr("holdfast.cli.measure.memory_of_worker", foretold)
    words = [
        "audit",
        "--model",
        str(tiny_testbed.folder / "never_exposed"),
        "--undefended",
        str(tiny_testbed.folder / "model"),
    ]
    words += ["--domain", str(tiny_testbed.folder), "--out", str(tmp_path / "out"), "--suite", "quick"]
    assert main([*words, "--executor", "slurm", "--cluster", "memory=auto"]) != 0
    assert "asked of 8 attacks on never_exposed" in capsys.readouterr().err


def test_a_search_asks_its_plan(
    installed: None, tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def foretold(console: object, search: Search) -> int:
        raise HoldfastError(f"asked of {', '.join(search.families)}")

    monkeypatch.setattr("holdfast.cli.explore.memory_of_search", foretold)
    folder = tiny_testbed.folder
    words = ["search", "--model", str(folder / "never_exposed"), "--undefended", str(folder / "model")]
    words += ["--domain", str(folder), "--out", str(tmp_path / "out"), "--families", "full,low-rank"]
    assert main([*words, "--executor", "slurm", "--cluster", "memory=auto"]) != 0
    assert "asked of full, low-rank" in capsys.readouterr().err


def test_a_study_asks_its_plan(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def foretold(console: object, study: Study) -> int:
        raise HoldfastError(f"asked of {study.title}")

    monkeypatch.setattr("holdfast.cli.explore.memory_of_study", foretold)
    words = ["study", "low-rank", "--out", str(tmp_path / "out"), "--executor", "slurm", "--cluster", "memory=auto"]
    assert main(words) != 0
    assert "asked of TAR by low-rank training" in capsys.readouterr().err


@pytest.mark.situation("hostile input", "a setting of a cluster")
@pytest.mark.parametrize(
    ("executor", "pair", "said"),
    [
        ("local", "cpus=1", "--cluster is for --executor slurm or ray; leave --cluster out"),
        ("slurm", "cpu=1", "Slurm has no setting 'cpu'; did you mean cpus"),
        ("slurm", "workers=1", "Slurm has no setting 'workers'"),
        ("ray", "partition=gpu", "Ray has no setting 'partition'"),
        ("slurm", "partition", "--cluster partition is not of the form NAME=VALUE"),
        ("slurm", "minutes=soon", "--cluster minutes: input should be a valid integer"),
        ("slurm", "minutes=0", "--cluster minutes: 0 is no number that a worker can have; give one from 1 on"),
        ("slurm", "cpus=-1", "give one from 1 on"),
        ("ray", "gpus=-0.5", "give one from 0 on"),
        ("ray", "memory=nan", "no number that a worker can have"),
        ("ray", "memory=1e400", "no number that a worker can have"),
        ("slurm", "memory=auto", "memory=auto is for audit, search, study and reproduce"),
        ("slurm", "cpus=auto", "--cluster cpus: input should be a valid integer"),
    ],
)
def test_a_setting_that_does_not_fit(executor: Kind, pair: str, said: str, installed: None, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=re.escape(said)):
        workers_of(executor, [pair], 2, tmp_path)


def test_what_an_executor_needs_is_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("holdfast.jobs.slurm.find_spec", lambda name: object())
    with pytest.raises(HoldfastError, match="there is no sbatch here; run the command on a machine"):
        workers_of("slurm", [], 2, tmp_path)
    for kind in ("slurm", "ray"):
        monkeypatch.setattr(f"holdfast.jobs.{kind}.find_spec", lambda name: None)
        with pytest.raises(HoldfastError, match=rf"pip install 'holdfast\[{kind}\]'"):
            workers_of(kind, [], 2, tmp_path)  # type: ignore[arg-type]


def test_only_workers_of_this_machine_have_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--workers", "100000"]) == 2
    assert "make sense on this machine" in capsys.readouterr().err
    assert main(["demo", "--workers", "100000", "--executor", "ray", "--cluster", "cpus=many"]) == 2
    assert "--cluster cpus" in capsys.readouterr().err
