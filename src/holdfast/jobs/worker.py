"""A worker: a process that takes jobs from its coordinator, one after the other, and ends with the coordinator.

The same loop runs in a process of this machine, in a job of SLURM and in a task of Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from holdfast.core.memory import LESS, shortage
from holdfast.core.outside import load_same, loaded
from holdfast.core.reuse import hearing
from holdfast.core.stopping import STATUS, Stopped, listening, saving
from holdfast.core.system import refused
from holdfast.core.types import HoldfastError

STOP = b"stop"
"""what a coordinator sends in place of a job: end the running job at its next step, with its state saved"""

END = b"end"
"""what a coordinator sends to a worker that it has no more jobs for"""

_TAKEN_OVER = ("HOLDFAST_", "HF_", "TRANSFORMERS_")
"""beginnings of the names of environment variables that a worker takes over from its coordinator"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a worker takes over from its coordinator before its first job. Everything is plain, so that nothing is imported."""

    folder: str
    """the working folder: paths of jobs may be relative"""
    path: tuple[str, ...]
    """where Python looks for modules"""
    environment: Mapping[str, str]
    plugins: Mapping[str, str]
    """what is loaded from outside (`core.outside.loaded`); jobs hold objects of such classes"""
    threads: int
    every: float
    """seconds between two reports of progress, at least"""


def setting(threads: int, workers: int) -> Setting:
    """The setting of this process.

    Args:
        threads: of a worker.
        workers: how many report at a time; all of them together send at most 500 reports of progress a second.
    """
    return Setting(
        folder=str(Path.cwd()),
        path=tuple(sys.path),
        environment={name: value for name, value in os.environ.items() if name.startswith(_TAKEN_OVER)},
        plugins=loaded(),
        threads=threads,
        every=max(0.2, workers / 500),
    )


def packed(call: Callable[..., Any], arguments: Mapping[str, Any]) -> bytes:
    """A job as a worker takes it."""
    return bytes(ForkingPickler.dumps((call, dict(arguments))))


def serve(connection: Connection) -> None:
    """Take jobs until the coordinator is gone, or until the system stops this process.

    Every message to the coordinator is a tuple that begins with its kind: `said`, `step`, `result`, `error`, `short` (an error
    too, of memory) or `stopped`.

    Args:
        connection: to the coordinator, which sends a `Setting` first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's; it ends its workers itself
    try:
        given: Setting = connection.recv()
    except EOFError:  # the last job has ended meanwhile
        return
    jobs: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, jobs), daemon=True).start()
    missing = prepare(given)
    last = 0.0

    def say(*message: object) -> None:
        with saving():  # half a message would be worse than a signal that waits
            connection.send(message)

    def on_step(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > given.every:
            last = time.monotonic()
            say("step", done, total)

    with hearing(lambda sentence: say("said", sentence)):
        try:
            with listening(signal.SIGUSR2):  # SLURM sends this before the time is up
                while (job := jobs.get()) != END:
                    _work(job, missing, say, on_step)
            return
        except Stopped:
            connection.send(("stopped",))
    sys.exit(STATUS)


def prepare(given: Setting) -> str:
    """Become like the coordinator; say why no job can be run here, empty where each can."""
    os.environ.update(given.environment)
    os.environ.update(
        OMP_NUM_THREADS=str(given.threads), MKL_NUM_THREADS=str(given.threads), TOKENIZERS_PARALLELISM="false"
    )
    sys.path[:] = given.path
    try:
        os.chdir(given.folder)
    except OSError as error:
        where = f"{given.folder} cannot be entered on {socket.gethostname()} ({error.strerror})"
        return f"{where}; work in a folder that all machines share"
    try:
        import torch

        torch.set_num_threads(given.threads)
        load_same(given.plugins)
    except HoldfastError as error:
        return str(error)
    return ""


def _listen(connection: Connection, jobs: SimpleQueue[bytes]) -> None:
    """Hand jobs to the main thread; end the process with its coordinator, whatever the main thread does."""
    main = threading.main_thread().ident
    assert main is not None
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)
        if content == STOP:
            signal.pthread_kill(main, signal.SIGTERM)
        else:
            jobs.put(content)
        if content == END:
            return


def _work(job: bytes, missing: str, say: Callable[..., None], on_step: Callable[[int, int], None]) -> None:
    """Run a job and report how the job ended.

    Args:
        job: as `packed` makes it.
        missing: why no job can be run; empty: each can.
        say: sends a message to the coordinator.
        on_step: reports the progress of the job.
    """
    try:
        if missing:
            raise HoldfastError(missing)
        try:
            call, arguments = ForkingPickler.loads(job)
        except (AttributeError, ImportError) as error:
            raise HoldfastError(
                f"a worker process cannot load what the job is about ({error}); write its class into a file"
            ) from error
        say("result", call(**arguments, on_step=on_step))
    except Exception as error:  # a job's bug must not take the other jobs down
        say("short" if shortage(error) else "error", *failure(error))


def failure(error: Exception) -> tuple[str, str]:
    """An error in one sentence, and its traceback where the error was unexpected; to be called where it is handled."""
    if short := shortage(error):
        return f"{short}; give fewer --workers, or {LESS}", ""
    if isinstance(error, HoldfastError):
        return str(error), ""
    if isinstance(error, OSError) and error.errno is not None:
        return refused(error), ""
    message = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {message}", traceback.format_exc()
