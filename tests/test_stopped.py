"""Commands that the system stops (SIGTERM): the state is saved, the command says so, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.core.files import file_digest
from holdfast.core.records import CampaignPlan, CellResult, cell_path
from tests.campaign.test_campaign import content
from tests.clusters import wait_until
from tests.conftest import SmallTestbed

SAID = "holdfast: stopped by the system; run the same command again to go on\n"

PLUGIN = '''"""An attack that takes its time and says where it works."""
import os, time
from dataclasses import dataclass
from pathlib import Path
from holdfast.attacks.finetune import FineTune

@dataclass(frozen=True, kw_only=True)
class Dawdles(FineTune):
    """Takes its time."""
    def steps(self, model, data, run):
        for loss in super().steps(model, data, run):
            with open(os.environ["HOLDFAST_TEST_MARKS"], "a") as marks:
                marks.write(f"{os.getpid()}\\n")
            time.sleep(0.2)
            yield loss

PRESETS = {f"dawdles-{rate}": Dawdles(max_steps=20, batch_size=4, learning_rate=rate) for rate in (1e-3, 1e-4)}
'''


def command(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "holdfast", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stopped(running: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    """Stop a command at a moment; the command says so in its last line."""
    wait_until(lambda: moment() or running.poll() is not None, "the moment")
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 143
    assert said.endswith(SAID)


def ended(words: list[str]) -> None:
    running = command(*words)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 0, said


@pytest.mark.slow
@pytest.mark.situation("interruption", "a command stopped by the system")
def test_a_safeguard_goes_on_to_the_same_weights(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "safeguard", "random-mapping", "--model", f"{tiny_testbed.folder}/model", "--domain", str(tiny_testbed.folder),
        "--set", "random-mapping.outer_steps=60",
    ]  # fmt: skip
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))

    def lines() -> int:
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "losses" in path.name]
        return max((path.read_text(encoding="utf-8").count("\n") for path in files), default=0)

    stopped(command(*words, "--out", str(tmp_path / "out")), lambda: lines() >= 5)
    done = lines()
    assert 5 <= done < 60
    ended([*words, "--out", str(tmp_path / "out")])
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "other"))
    ended([*words, "--out", str(tmp_path / "undisturbed")])
    weights = [file_digest(tmp_path / folder / "model.safetensors") for folder in ("out", "undisturbed")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.situation("interruption", "a command stopped by the system")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_an_audit_ends_with_its_workers_and_goes_on_to_the_same_records(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dawdles.py").write_text(PLUGIN, encoding="utf-8")
    suite = "".join(f'[[attacks]]\npreset = "dawdles-{rate}"\n' for rate in (0.001, 0.0001))
    (tmp_path / "suite.toml").write_text(suite, encoding="utf-8")
    words = [
        "audit", "--model", f"{tiny_testbed.folder}/never_exposed", "--undefended", f"{tiny_testbed.folder}/model",
        "--domain", str(tiny_testbed.folder), "--suite", str(tmp_path / "suite.toml"), "--seeds", "1", "--milestones", "0,20",
        "--plugins", str(tmp_path / "dawdles.py"), "--workers", "2", "--resumable-attacks",
    ]  # fmt: skip
    marks, out = tmp_path / "marks", tmp_path / "out"
    monkeypatch.setenv("HOLDFAST_TEST_MARKS", str(marks))

    def steps() -> list[int]:
        return [int(line) for line in marks.read_text().splitlines()] if marks.exists() else []

    def two_at_work() -> bool:
        alive = [process for process in set(steps()) if Path(f"/proc/{process}").exists()]
        return len(alive) == 2 and min(map(steps().count, alive)) >= 3

    stopped(command(*words, "--out", str(out)), two_at_work)
    assert not [process for process in set(steps()) if Path(f"/proc/{process}").exists()]
    assert len(list((out / "resume").iterdir())) == 2
    first = len(steps())

    # A worker that the system stops costs nothing: another goes on with its job.
    known, running = set(steps()), command(*words, "--out", str(out))
    wait_until(lambda: len(set(steps()) - known) > 0, "a step")
    os.kill((set(steps()) - known).pop(), signal.SIGTERM)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 0, said

    ran = len(steps())
    ended([*words, "--out", str(tmp_path / "undisturbed")])
    assert ran == len(steps()) - ran, "every step was taken once, however often the run was stopped"
    assert 6 <= first < ran
    cells = CampaignPlan.read(out).cells
    for cell in cells:
        there, expected = (CellResult.read(cell_path(folder, cell)) for folder in (out, tmp_path / "undisturbed"))
        assert there.status == "finished"
        assert content(there) == content(expected)
