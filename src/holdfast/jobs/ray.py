"""Workers that Ray starts: one task of Ray a worker, which takes one job of the graph after the other.

Ray places the workers and gives each its GPUs. Jobs and results go between coordinator and worker as with every executor.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from holdfast.core.reuse import tell
from holdfast.core.types import HoldfastError
from holdfast.jobs.door import Door, work_at
from holdfast.jobs.executor import Arrival, Place

_ASK_EVERY = 5.0
"""seconds between two looks at the workers that have not come, at least"""

_SAYS_AFTER = 30.0
"""seconds of waiting for workers after which the wait is explained"""


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Tasks of Ray."""

    shares_memory: ClassVar[bool] = False

    workers: int = 2
    """the most workers at a time"""
    address: str = ""
    """of the cluster, such as auto; empty: that in RAY_ADDRESS, else a cluster of this machine alone that ends with the run"""
    memory: float = 0
    """GB of a worker, by which Ray places workers; 0: as much as a worker takes"""
    cpus: int = 1
    """processors, and threads, of a worker"""
    gpus: float = 0
    """GPUs of a worker; a fraction lets workers share a GPU"""
    host: str = ""
    """by which the machines reach this one; empty: its address in the cluster"""

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise HoldfastError("Ray is not installed; pip install 'holdfast[ray]'")

    @property
    def threads(self) -> int:
        """As many as processors."""
        return self.cpus

    def open(self) -> Place:
        """Make a place without tasks.

        Raises:
            HoldfastError: there is no cluster at the address.
        """
        return _Tasks(self)


class _Tasks:
    """The tasks of one run."""

    def __init__(self, settings: Ray) -> None:
        import ray

        self._settings, self._theirs = settings, ray.is_initialized()
        if not self._theirs:
            try:
                ray.init(
                    address=settings.address or None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=False,
                )
            except (ConnectionError, ValueError) as error:
                raise HoldfastError(
                    f"there is no Ray cluster at {settings.address or 'RAY_ADDRESS'} ({error}); begin one with ray start --head, "
                    "or give another --cluster address=…"
                ) from error
        self._door = Door(settings.host or ray.util.get_node_ip_address())
        self._task = ray.remote(work_at).options(
            num_cpus=settings.cpus, num_gpus=settings.gpus, max_retries=0, name="holdfast",
            **({"memory": round(1e9 * settings.memory)} if settings.memory else {}),
        )  # fmt: skip
        self._begun: list[Any] = []
        self._expected: dict[str, Any] = {}
        self._present: set[str] = set()
        self._asked = self._waits_since = time.monotonic()
        self._said = False
        self._vain = 0

    def begin(self, count: int) -> None:
        if not self._expected:
            self._waits_since, self._said = time.monotonic(), False
        for _ in range(count):
            name = str(len(self._begun))
            task = self._task.remote(self._door.host, self._door.port, self._door.key, name)
            self._begun.append(task)
            self._expected[name] = task

    def arrivals(self) -> list[Arrival]:
        came = self._door.arrivals()
        for arrival in came:
            self._expected.pop(arrival.name, None)
            self._present.add(arrival.name)
            self._vain = 0
        return came

    def coming(self) -> int:
        if self._expected and time.monotonic() - self._asked > _ASK_EVERY:
            self._ask()
        return len(self._expected)

    def fate(self, name: str) -> str:
        self._present.discard(name)
        how, _ = self._end_of(self._begun[int(name)])
        return f"its worker was lost (Ray: {how}), perhaps for lack of memory: give fewer --workers, or more --cluster memory=…"

    def close(self) -> None:
        """Take back what waits; what runs ends with its connection."""
        import ray

        self._door.close()
        with contextlib.suppress(Exception):  # the cluster may be gone
            for task in self._expected.values():
                ray.cancel(task, force=True)
        if not self._theirs:
            ray.shutdown()

    def _ask(self) -> None:
        """Find out which of the expected workers still may come."""
        import ray

        self._asked = time.monotonic()
        names = {task: name for name, task in self._expected.items()}
        ended, _ = ray.wait(list(names), num_returns=len(names), timeout=0, fetch_local=False)
        for task in ended:
            del self._expected[names[task]]
        if self._expected and not self._said and self._asked - self._waits_since > _SAYS_AFTER:
            self._said = True
            tell(f"workers that wait for room in Ray: {len(self._expected)}")
        if ended and not self._expected and not self._present:
            self._vain += 1
            if self._vain > 1:
                _, said = self._end_of(ended[-1])
                raise HoldfastError(
                    f"the workers that Ray started ended before they took a job ({said}); "
                    "mend that, and run the same command again"
                )

    def _end_of(self, task: Any) -> tuple[str, str]:
        """How a task ended, as far as Ray knows yet: in a word, and in the last line of what Ray says."""
        import ray

        try:
            ray.get(task, timeout=0.5)
            return "it ended by itself", "no error"
        except ray.exceptions.GetTimeoutError:
            return "it is not known why", "no error"
        except Exception as error:  # whatever the task raised, or how Ray lost the task
            lines = str(error).strip().splitlines() or ["no message"]
            return type(error).__name__, f"{type(error).__name__}: {lines[-1]}"
