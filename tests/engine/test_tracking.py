"""Tracking: what the tools are told, that a run's numbers stay the same, and that a tool that fails ends no run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast.core.tracking
import holdfast.engine.trackers
from holdfast.attacks.finetune import FineTune
from holdfast.core.options import Options
from holdfast.core.tracking import TRACKERS, trackers_in
from holdfast.core.types import HoldfastError
from holdfast.engine import tracking
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.session import Session
from holdfast.engine.trackers import Tracked
from holdfast.engine.tracking import Tracking, UpdateSize
from holdfast.engine.walk import Steps, walk
from holdfast.runs.stages import Recipe, build
from holdfast.safeguards.random_mapping import RandomMapping
from tests.attacks.walk import fresh, weights
from tests.conftest import SmallTestbed

ATTACK = FineTune(batch_size=4, max_steps=3)
MAPPING = RandomMapping(outer_steps=6, forget_batch_size=4, retain_batch_size=4)
RUN = Tracked(name="a, seed 0", key="0123456789abcdef", group="attacks", config={"attack": "a", "seed": 0})


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_failed", set())


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the only run below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [place] = {path.parent for path in folder.rglob("*tfevents*")}
    events = EventAccumulator(str(place)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def walked(testbed: SmallTestbed, *observers: Any, start: int = 0) -> torch.Tensor:
    seed_everything(9)
    model, data = fresh(testbed)
    run = Run(9)
    run.start = start
    walk(Session(model=model, tokenizer=None, data=data, run=run), ATTACK, *observers)  # type: ignore[arg-type]
    return weights(model)


class Losses:
    """An observer that keeps losses."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, float]] = []

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        for step, losses in steps:
            self.kept.append((step, losses))
            yield step, losses


def test_tensorboard_shows_losses_norms_and_scores_and_changes_no_weight(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    losses = Losses()
    plain = walked(tiny_testbed, losses)
    watching = Tracking(
        tools=("tensorboard",),
        run=RUN,
        folder=tmp_path,
        scores=lambda step: {"hazard/hazard": step / 10} if step != 1 else {},
    )
    assert torch.equal(walked(tiny_testbed, watching), plain)
    shown = curves(tmp_path)
    assert set(shown) == {"loss/attacker", "norm/gradient", "norm/relative update", "hazard/hazard"}
    assert shown["loss/attacker"] == [(step, pytest.approx(loss)) for step, loss in losses.kept]
    assert shown["hazard/hazard"] == [(0, 0.0), (2, pytest.approx(0.2)), (3, pytest.approx(0.3))]
    assert all(value > 0 for name in ("norm/gradient", "norm/relative update") for _, value in shown[name])


def test_a_run_that_goes_on_shows_each_update_once(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    watching = Tracking(tools=("tensorboard",), run=RUN, folder=tmp_path, scores=lambda step: {})
    walked(tiny_testbed, watching)
    walked(tiny_testbed, watching, start=1)  # the state of the first update was the last that was saved
    assert [step for step, _ in curves(tmp_path)["loss/attacker"]] == [1, 2, 3]


def test_the_size_of_an_update_is_relative_to_the_weights() -> None:
    model = torch.nn.Linear(3, 4)
    size, before = UpdateSize(model), weights(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    assert size(model) == pytest.approx(0.01, rel=1e-4)
    assert size(model) == 0.0
    assert before.norm() > 0


class Breaks:
    """A tool that fails in the second update."""

    def __init__(self, run: Tracked, folder: Path, start: int) -> None:
        self.logged = 0

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.logged += 1
        if self.logged == 2:
            raise SystemExit("the server\nis gone")

    def close(self) -> None:
        raise AssertionError("what failed is left alone")


class Never:
    """A tool that cannot be opened."""

    def __init__(self, run: Tracked, folder: Path, start: int) -> None:
        raise RuntimeError("no server")


@pytest.mark.parametrize(("tool", "reason"), [(Breaks, "the server"), (Never, "no server")])
def test_a_tool_that_fails_is_left_out_with_one_word_and_the_run_goes_on(
    tool: Any, reason: str, tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    openers = {**holdfast.engine.trackers._OPENERS, "wandb": tool}
    monkeypatch.setattr(holdfast.engine.trackers, "_OPENERS", openers)
    plain = walked(tiny_testbed)
    watching = Tracking(tools=("wandb",), run=RUN, folder=tmp_path, scores=lambda step: {})
    with caplog.at_level(logging.WARNING, logger="holdfast"):
        assert torch.equal(walked(tiny_testbed, watching), plain)
        assert torch.equal(walked(tiny_testbed, watching), plain)
    assert [record.getMessage() for record in caplog.records] == [
        f"wandb failed and is left out from here on; the run goes on: {reason}"
    ]


def test_a_safeguard_is_tracked_beside_its_folder_with_the_sample_and_is_the_same_model(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(name: str, options: Options) -> bytes:
        monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / f"cache-{name}"))
        stages = (("random-mapping", MAPPING),)
        recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=stages, options=options)
        return (build(recipe, tmp_path / name) / "model.safetensors").read_bytes()

    assert made("plain", Options()) == made("tracked", Options(track=("tensorboard",)))
    assert not (tmp_path / "plain-tracking").exists()
    shown = curves(tmp_path / "tracked-tracking")
    assert [step for step, _ in shown["loss/mapping loss"]] == [1, 2, 3, 4, 5, 6]
    for name in ("hazard/selection/accuracy", "ability/ability/accuracy"):
        assert [step for step, _ in shown[name]] == [0, 5, 6], "the sample is asked at milestones"


def test_a_cell_is_tracked_in_its_campaign_and_has_the_same_record(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    from holdfast.campaign.cell import run_cell
    from holdfast.campaign.cells import Campaign, Model
    from holdfast.core.records import CellResult, cell_path

    def cell(out: Path, options: Options) -> CellResult:
        campaign = Campaign(
            models=(Model(label="secret-name", path=tiny_testbed.model.path, role="defended"),),
            domain=tiny_testbed.folder, attacks=(("full", ATTACK),), seeds=(0,), options=options,
        )  # fmt: skip
        [attacked] = [cell for cell in campaign.cells() if cell.attack]
        return CellResult.read(cell_path(out, run_cell(attacked, out)))

    plain = cell(tmp_path / "plain", Options())
    watched = cell(tmp_path / "watched", Options(track=("tensorboard",)))
    assert (watched.records, watched.losses, watched.cell) == (plain.records, plain.losses, plain.cell)
    shown = curves(tmp_path / "watched" / "tracking")
    assert shown["loss/attacker"] == [(step, pytest.approx(loss)) for step, loss in plain.losses]
    hazard = [
        (r.step, pytest.approx(r.value)) for r in plain.records if r.evaluation == "hazard" and r.metric == "accuracy"
    ]
    assert shown["hazard/hazard/accuracy"] == hazard
    assert not list((tmp_path / "watched").rglob("*secret-name*")), "a model's name stays here"


# The command line


def test_trackers_are_named_once_each_with_commas_or_again() -> None:
    assert trackers_in(["tensorboard, mlflow", "tensorboard"]) == ("tensorboard", "mlflow")
    assert trackers_in([]) == ()


def test_an_unknown_tracker_and_a_missing_extra_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HoldfastError, match=r"there is no tracker 'tensorbord'; .*tensorboard"):
        trackers_in(["tensorbord"])
    monkeypatch.setattr(holdfast.core.tracking, "find_spec", lambda name: None)
    with pytest.raises(
        HoldfastError,
        match=r"^wandb is not installed; run pip install 'holdfast\[wandb\]', or leave --track wandb out$",
    ):
        trackers_in(["wandb"])


# The other tools, each in a process of its own: they keep threads and servers


PROGRAM = """
import sys
from pathlib import Path
from holdfast.engine.trackers import Tracked, open_tracker
run = Tracked(name="a, seed 0", key="0123456789abcdef", group="attacks", config={"attack": "a", "seed": 0})
for start, steps in ((0, (0, 1, 2)), (2, (3,))):
    tracker = open_tracker(sys.argv[1], run, Path(sys.argv[2]), start)
    for step in steps:
        tracker.log(step, {"loss/mapping loss": step / 4})
    tracker.close()
"""

READ = {
    "mlflow": """
from mlflow import MlflowClient
client = MlflowClient((Path(sys.argv[2]) / "mlflow").resolve().as_uri())
[run] = client.search_runs([client.get_experiment_by_name("holdfast").experiment_id])
print([(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss/mapping loss")])
""",
    "trackio": """
import sqlite3, json
[file] = (Path(sys.argv[2]) / "trackio").glob("*.db")
rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step").fetchall()
print([(step, json.loads(metrics)["loss/mapping loss"]) for step, metrics in rows])
""",
    # The file is a log of records with a head of 7 bytes each: checksum, length, kind. A small file is one block.
    "wandb": """
import struct
from wandb.proto import wandb_internal_pb2 as pb
rows = []
for file in (Path(sys.argv[2]) / "wandb").glob("offline-run-*/*.wandb"):
    content, at = file.read_bytes(), 7
    while at + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record = pb.Record()
        record.ParseFromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append((int(items["_step"]), float(items["loss/mapping loss"])))
print(sorted(rows))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", [tool for tool in TRACKERS if tool != "tensorboard"])
def test_a_tool_holds_the_figures_of_a_run_that_went_on_and_nothing_of_this_machine(tool: str, tmp_path: Path) -> None:
    pytest.importorskip(tool)
    own = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    left = {"MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"}
    environment = {name: value for name, value in os.environ.items() if name not in left} | own
    for program in (
        PROGRAM,
        "import os, sys\nos.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'\nfrom pathlib import Path" + READ[tool],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, tool, str(tmp_path)],
            capture_output=True, text=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([(step, step / 4) for step in range(4)])
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log")
    for private in (os.uname().nodename, sys.executable, os.environ.get("USER") or "no user"):
        assert len(private) < 4 or private.encode() not in kept
