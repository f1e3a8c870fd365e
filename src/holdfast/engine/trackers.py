"""The tools that show a run's figures while the run goes on: TensorBoard, Weights & Biases, MLflow and trackio.

Only figures, the names of presets and seeds reach a tool: no row, no question, no path, no command line, no source code, no
name of a machine. What the tools collect by themselves is switched off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from holdfast.core.types import HoldfastError

PROJECT = "holdfast"


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a tool is told of a run."""

    name: str
    """of presets and the seed"""
    key: str
    """content of what the run is: a run that goes on after a kill is the same run"""
    group: str
    """of runs that belong together, such as "audit\""""
    config: Mapping[str, str | int] = field(default_factory=dict)
    """preset, seed and the like"""

    @property
    def folder(self) -> str:
        """A name for files."""
        return re.sub(r"[^\w.+=-]+", "-", f"{self.name}-{self.key[:8]}")


class Tracker(Protocol):
    """A run in one of the tools."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


def log_in(tools: Sequence[str]) -> None:
    """Make sure that a tool which needs an account has one, before a run begins; on a terminal the tool may ask.

    Raises:
        HoldfastError: it has none.
    """
    if "wandb" not in tools or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    wandb: Any = import_module("wandb")
    try:
        known = wandb.login()
    except Exception:  # wandb has an error of its own for each way to fail; the user needs one sentence
        known = False
    if not known:
        raise HoldfastError(
            "wandb knows no account here; run `wandb login`, or set WANDB_MODE=offline to track into files"
        )


def open_tracker(tool: str, run: Tracked, folder: Path, start: int) -> Tracker:
    """Begin a run in a tool, or go on with it after update `start`; whatever the tool raises is raised."""
    return _OPENERS[tool](run, folder, start)


class _TensorBoard:
    def __init__(self, run: Tracked, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote beyond the state that this one goes on from is not shown.
        place = folder / "tensorboard" / run.folder
        self._writer: Any = SummaryWriter(str(place), purge_step=start + 1 if start else 0, flush_secs=10)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: Tracked, folder: Path, start: int) -> None:
        wandb: Any = import_module("wandb")  # untyped, so that types are the same whatever is installed
        place = Path(os.environ.get("WANDB_DIR") or folder)
        place.mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        goes_on = "allow" if start and os.environ.get("WANDB_MODE") != "offline" else None
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT, name=run.name, group=run.group, id=run.key[:16],
            config=dict(run.config), dir=str(place), resume=goes_on, reinit="create_new", settings=quiet,
        )  # fmt: skip

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, run: Tracked, folder: Path, start: int) -> None:
        server = os.environ.get("MLFLOW_TRACKING_URI")
        if server is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would need another package
        # A server that does not answer is not to hold a run up for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow: Any = import_module("mlflow")
        self._metric = mlflow.entities.Metric
        self._client = mlflow.MlflowClient(server or (folder / "mlflow").resolve().as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        self._id = ""
        experiment = self._experiment(name)
        if start:
            known = self._client.search_runs([experiment], f"tags.key = '{run.key}'", max_results=1)
            self._id = known[0].info.run_id if known else ""
        if not self._id:
            # Made by the client: the fluent interface would note the user, the script and its commit.
            tags = {"key": run.key, "group": run.group}
            self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            for setting, value in run.config.items():
                self._client.log_param(self._id, setting, value)

    def _experiment(self, name: str) -> str:
        with suppress(Exception):  # another process may have made it meanwhile
            if self._client.get_experiment_by_name(name) is None:
                self._client.create_experiment(name)
        found: str = self._client.get_experiment_by_name(name).experiment_id
        return found

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from time import time

        now = int(1000 * time())
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in figures.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, run: Tracked, folder: Path, start: int) -> None:
        trackio: Any = import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        with redirect_stdout(StringIO()):  # it prints how to look, which the command says itself
            self._run: Any = trackio.init(
                project=project, name=run.folder, group=run.group, config=dict(run.config),
                resume="allow" if start else "never", embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._run.finish()


_OPENERS: Mapping[str, Callable[[Tracked, Path, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
