"""The options that say where jobs run: on this machine, or in the workers of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from holdfast.cli.terminal import fail
from holdfast.core.processes import started_by_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.jobs.executor import Workers

_MOST_RANKS = 64
"""More GPUs than a machine has."""

Kind = Literal["local", "slurm", "ray"]

ExecutorOption = Annotated[
    Kind,
    typer.Option(
        "--executor",
        is_eager=True,  # --workers asks for it
        help="Where jobs run: in processes of this machine, in jobs of SLURM, or in tasks of Ray.",
    ),
]


ClusterOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--cluster",
        metavar="NAME=VALUE",
        help="Setting of SLURM or Ray for a worker, repeatable: cpus, gpus, memory (GB, or auto), host; SLURM's partition, "
        "account, qos, minutes; Ray's address.",
    ),
]

RanksOption = Annotated[
    int,
    typer.Option(
        "--ranks",
        min=1,
        max=_MOST_RANKS,
        help="Processes of one machine that share the model of a cell, as under torchrun; each has a part of the model and, with "
        "--device cuda, a GPU of its own.",
    ),
]

_NOT_SET_SO = ("workers", "folder")
"""fields that have options of their own"""


def workers_of(
    executor: Kind,
    cluster: list[str] | None,
    workers: int,
    out: Path,
    ranks: int = 1,
    device: str = "cpu",
    foretell: Callable[[], int] | None = None,
) -> Workers:
    """Where the jobs of a verb run.

    Args:
        executor: of `--executor`.
        cluster: the pairs of `--cluster`.
        workers: of `--workers`.
        out: the folder of the run, in which SLURM's jobs leave what they print.
        ranks: of `--ranks`: a worker has a processor for each and, on GPUs, a GPU for each, unless the user says otherwise.
        device: of the cells.
        foretell: gives the bytes of the host's memory that a worker needs, for `memory=auto`; None: nobody can foretell them.

    Raises:
        HoldfastError: a setting is unknown or of another type, or what the executor needs is missing.
    """
    if executor != "local" and started_by_torchrun():
        fail(
            f"--executor {executor} does not go with torchrun, whose processes run every cell together; leave one of them out"
        )
    if ranks > 1 and started_by_torchrun():
        fail("--ranks does not go with torchrun, which says itself how many processes there are; leave one of them out")
    if executor == "local":
        if cluster:
            fail("--cluster is for --executor slurm or ray; leave --cluster out, or name the executor")
        return workers
    if executor == "slurm":
        from holdfast.jobs.slurm import Slurm

        folder = out.resolve() / "slurm"
        return Slurm(workers=workers, folder=folder, **_read(Slurm, cluster or (), ranks, device, foretell))
    from holdfast.jobs.ray import Ray

    return Ray(workers=workers, **_read(Ray, cluster or (), ranks, device, foretell))


def _read(
    kind: type,
    cluster: list[str] | tuple[str, ...],
    ranks: int,
    device: str,
    foretell: Callable[[], int] | None,
) -> dict[str, Any]:
    """The settings as the fields hold them: a text is what it looks like in its field's type."""
    import dataclasses
    from typing import get_type_hints

    from pydantic import TypeAdapter

    from holdfast.core.domain import nearest
    from holdfast.core.escape import short
    from holdfast.core.reading import misfit

    hints = get_type_hints(kind)
    known = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in _NOT_SET_SO}
    values: dict[str, Any] = {}
    for pair in cluster:
        name, equals, text = pair.partition("=")
        if not equals:
            fail(f"--cluster {short(pair)} is not of the form NAME=VALUE, such as cpus=4")
        if name not in known:
            fail(f"--cluster: {kind.__name__} has no setting {short(name)!r}; {nearest(name, known)}")
        if (name, text) == ("memory", "auto"):
            values[name] = _foretold(foretell, ranks)
            continue
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(text)
        except ValueError as error:
            fail(f"--cluster {name}: {misfit(error)}")
        least = 1 if known[name] else 0  # 0 stands for the cluster's own number, where that is the default
        if not isinstance(values[name], str) and not least <= values[name] < 1e9:
            fail(f"--cluster {name}: {short(text)} is no number that a worker can have; give one from {least} on")
    on_gpus = device.startswith("cuda")
    if on_gpus and ranks > 1 and values.get("gpus", ranks) < ranks:
        fail(f"--cluster gpus={values['gpus']} is too few for --ranks {ranks}: each process takes a GPU of its own")
    return {"cpus": ranks, **({"gpus": ranks} if on_gpus else {}), **values}


def _foretold(foretell: Callable[[], int] | None, ranks: int) -> float:
    """The memory of a worker in GB, rounded up."""
    import math

    if foretell is None:
        fail("--cluster memory=auto is for audit, search, study and reproduce; give a number of GB")
    if ranks > 1:
        fail("--cluster memory=auto plans for a model on one device; give a number of GB with --ranks")
    return math.ceil(foretell() / 1e8) / 10
