"""A cluster of SLURM on this machine, for as long as a test needs the cluster; a cluster of Ray likewise.

Nothing of the machine's own SLURM is used: keys, sockets, ports and state are in a folder of the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
_ELSEWHERE = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> str:
    """Why there can be no cluster of SLURM here; empty: there can be."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_ELSEWHERE) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs of other users, so only root can run it"


def wait_until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class SlurmCluster:
    """A cluster of one node."""

    folder: Path
    node: str = field(default_factory=lambda: socket.gethostname().partition(".")[0])
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=_ELSEWHERE)
        assert program is not None
        log = (self.folder / f"{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(
            [program, *words], stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PATH": _ELSEWHERE}
        )
        log.close()

    def begin(self) -> None:
        folder = self.folder
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost={self.node}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
KillWait=10
SlurmdTimeout=10
NodeName={self.node} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=small Nodes={self.node} Default=YES MaxTime=60 State=UP
"""
        )
        self.start(
            "munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )  # fmt: skip
        wait_until((folder / "munge.socket").exists, "munged")
        self.start("slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        self.start("slurmd", "-D", "-f", f"{folder}/slurm.conf")
        wait_until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "an idle node")

    def ask(self, *words: str) -> str:
        environment = {**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf"}
        return subprocess.run(words, capture_output=True, text=True, env=environment, check=False).stdout

    def running(self) -> list[int]:
        """Processes of the workers that run."""
        listed = self.ask("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()
        return [] if not listed else list(_processes("submitit.core._submit"))

    def kill_node(self) -> None:
        """As a power cut would: the daemon of the node and all that it started."""
        self._daemons.pop("slurmd").kill()
        for process in (*_processes("slurmstepd"), *_processes("submitit.core._submit")):
            os.kill(process, signal.SIGKILL)

    def mend_node(self) -> None:
        self.start("slurmd", "-D", "-f", f"{self.folder}/slurm.conf")

    def end(self) -> None:
        self.ask("scancel", "-u", "root")
        for process in _processes("submitit.core._submit"):
            os.kill(process, signal.SIGKILL)
        for name in ("slurmd", "slurmctld", "munged"):
            if daemon := self._daemons.pop(name, None):
                daemon.terminate()
                try:
                    daemon.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _processes(word: str) -> Iterator[int]:
    """Processes with a word in their command, of this test: they have its SLURM_CONF."""
    mine = f"SLURM_CONF={os.environ.get('SLURM_CONF', '?')}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in command and mine in environment.split(b"\0"):
            yield int(folder.name)


@contextmanager
def slurm(folder: Path) -> Iterator[SlurmCluster]:
    """A cluster that commands of this process and its children find, until the block ends."""
    cluster = SlurmCluster(folder)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = f"{folder}/slurm.conf"
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before
