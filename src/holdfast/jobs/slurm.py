"""Workers that SLURM starts, through submitit.

SLURM is given workers, not the jobs of the graph. A worker takes one job after the other, for three reasons. The seconds that a
process needs to load its libraries are paid once a worker. Ten thousand cells need no ten thousand entries in the queue, of which
many clusters allow a thousand. A run goes on with however many workers SLURM has room for. Workers are begun together, as one
job array, which costs the scheduler one request.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from holdfast.core.reuse import tell
from holdfast.core.types import HoldfastError
from holdfast.jobs.door import Door, work_at
from holdfast.jobs.executor import Arrival, Place

_ASK_EVERY = 5.0
"""seconds between two questions to the scheduler, and between two job arrays, at least"""

_SHOWN_AFTER = 60.0
"""seconds after which a job that SLURM does not list counts as ended"""

_SAYS_AFTER = 30.0
"""seconds of waiting for workers after which the wait is explained, and again whenever SLURM's reason changes"""

_ARRAY = 1000
"""elements of a job array that SLURM allows unless told otherwise (MaxArraySize)"""

_LIVING = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Jobs of SLURM. What has no field here can be given in SLURM's own environment variables, such as SBATCH_RESERVATION."""

    shares_memory: ClassVar[bool] = False

    folder: Path
    """for what SLURM's jobs are made of and for their output; all machines must see the folder"""
    workers: int = 2
    """the most workers at a time"""
    partition: str = ""
    """empty: the cluster's default"""
    account: str = ""
    """whom the time is charged to; empty: the user's default"""
    qos: str = ""
    """quality of service; empty: the default"""
    minutes: int = 240
    """time limit of a worker: a worker whose time is up is replaced"""
    memory: float = 0
    """GB of a worker; 0: the cluster's default"""
    cpus: int = 1
    """processors, and threads, of a worker"""
    gpus: int = 0
    """GPUs of a worker"""
    host: str = ""
    """by which the machines reach this one; empty: its host name"""

    def __post_init__(self) -> None:
        if find_spec("submitit") is None:
            raise HoldfastError("SLURM is used through submitit, which is not installed; pip install 'holdfast[slurm]'")
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise HoldfastError("there is no sbatch here; run the command on a machine that may submit jobs to SLURM")

    @property
    def threads(self) -> int:
        """As many as processors."""
        return self.cpus

    def open(self) -> Place:
        """Make a place without jobs."""
        return _Jobs(self)


@dataclass(frozen=True)
class _Begun:
    job: Any
    """submitit's"""
    since: float


class _Jobs:
    """The SLURM jobs of one run."""

    def __init__(self, slurm: Slurm) -> None:
        self._slurm, self._door = slurm, Door(slurm.host)
        self._called = f"holdfast-{secrets.token_hex(4)}"  # by which SLURM lists the jobs of this run
        self._begun: dict[str, _Begun] = {}
        self._expected: set[str] = set()
        self._present: set[str] = set()
        self._asked = self._submitted = float("-inf")
        self._waits_since = time.monotonic()
        self._said = ""
        self._vain = 0

    def begin(self, count: int) -> None:
        """Submit a job array; a few seconds after another, nothing yet. Arrays in vain make the pauses longer."""
        now = time.monotonic()
        if now - self._submitted < _ASK_EVERY * 2**self._vain:
            return
        names = [f"{len(self._begun) + index}" for index in range(min(count, _ARRAY))]
        if not self._expected:
            self._waits_since, self._said = now, ""
        self._submitted = self._asked = time.monotonic()
        for name, job in zip(names, self._submit(names), strict=True):
            self._begun[name] = _Begun(job, self._submitted)
            self._expected.add(name)

    def arrivals(self) -> list[Arrival]:
        came = self._door.arrivals()
        for arrival in came:
            self._expected.discard(arrival.name)
            self._present.add(arrival.name)
            self._vain = 0
        return came

    def coming(self) -> int:
        if self._expected and time.monotonic() - self._asked > _ASK_EVERY:
            self._ask()
        return len(self._expected)

    def fate(self, name: str) -> str:
        self._present.discard(name)
        return (
            f"its worker was lost (SLURM job {self._begun[name].job.job_id}), perhaps for lack of memory or time: give more with "
            "--cluster memory=… or --cluster minutes=…"
        )

    def close(self) -> None:
        """Take back what waits in the queue. What runs ends with its connection; the key of the run is removed."""
        self._door.close()
        if self._expected:
            waiting = [self._begun[name].job.job_id for name in self._expected]
            subprocess.run(["scancel", *waiting], capture_output=True, check=False)
        for begun in self._begun.values():
            begun.job.paths.submitted_pickle.unlink(missing_ok=True)
            begun.job.paths.result_pickle.unlink(missing_ok=True)

    def _submit(self, names: list[str]) -> list[Any]:
        import submitit

        self._slurm.folder.mkdir(parents=True, exist_ok=True)
        self._slurm.folder.chmod(0o700)  # the run's key lies there
        executor = submitit.SlurmExecutor(folder=self._slurm.folder, max_num_timeout=0)
        given = {"partition": self._slurm.partition, "account": self._slurm.account, "qos": self._slurm.qos}
        wanted: dict[str, Any] = {name: value for name, value in given.items() if value}
        if self._slurm.memory:
            wanted["mem"] = f"{round(1000 * self._slurm.memory)}M"
        if self._slurm.gpus:
            wanted["gpus_per_node"] = self._slurm.gpus
        executor.update_parameters(
            job_name=self._called, time=self._slurm.minutes, cpus_per_task=self._slurm.cpus, stderr_to_stdout=True,
            signal_delay_s=min(90, 15 * self._slurm.minutes),  # before the time is up, so that a worker can save
            array_parallelism=len(names), additional_parameters={"no-requeue": True},
            srun_args=[f"--cpus-per-task={self._slurm.cpus}"],  # srun does not take this from its job since 22.05
            **wanted,
        )  # fmt: skip
        work = partial(work_at, self._door.host, self._door.port, self._door.key)
        try:
            with _outside_a_job():
                return list(executor.map_array(work, names))
        except subprocess.CalledProcessError as error:
            raise HoldfastError(_refusal(str(error.stderr or error))) from error
        except RuntimeError as error:  # FailedJobError of submitit is one, with what sbatch said
            raise HoldfastError(_refusal(str(error))) from error

    def _ask(self) -> None:
        """Find out which of the expected workers still may come."""
        self._asked = time.monotonic()
        states = self._states()
        if states is None:
            return
        ended = []
        for name in sorted(self._expected):
            begun = self._begun[name]
            state, reason = states.get(begun.job.job_id, ("", ""))
            listed = state in _LIVING or (not state and self._asked - begun.since < _SHOWN_AFTER)
            if not listed:
                self._expected.discard(name)
                ended.append((begun.job, state or "it is no longer listed"))
            elif state == "PENDING" and self._asked - self._waits_since > _SAYS_AFTER and reason != self._said:
                self._said = reason
                tell(f"workers that wait for room in SLURM: {len(self._expected)} ({reason})")
        if ended and not self._expected and not self._present:
            self._vain += 1
            if self._vain > 1:
                job, state = ended[-1]
                raise HoldfastError(
                    f"the workers that SLURM started ended before they took a job (job {job.job_id}: {state}; its output "
                    f"{job.paths.stdout} ends with {_end_of(job.paths.stdout)}); mend that, and run the same command again"
                )

    def _states(self) -> Mapping[str, tuple[str, str]] | None:
        """Job -> its state and the reason why it waits; None where SLURM does not answer now."""
        command = ["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-n", self._called, "-o", "%i|%T|%r"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        lines = [line.strip().split("|") for line in said.splitlines()]
        return {line[0]: (line[1], line[2]) for line in lines if len(line) == 3}


@contextmanager
def _outside_a_job() -> Iterator[None]:
    """Hide that this process is a job of SLURM, if so: sbatch would take that job's sizes for those of the workers."""
    hidden = {
        name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SLURM_") and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _refusal(said: str) -> str:
    last = next((line for line in reversed(said.strip().splitlines()) if "error" in line), said.strip())
    return f"SLURM refused the workers ({last}); give what the cluster asks for with --cluster, such as partition or account"


def _end_of(path: Path) -> str:
    """The last line that the worker itself printed: below stands what SLURM says of its end."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "nothing, for it is not there"
    said = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))]
    return f"“{said[-1]}”" if said else "nothing"
