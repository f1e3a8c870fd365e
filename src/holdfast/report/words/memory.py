"""The sentences on the memory that a command will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.report.table import Entry, Table

KNOBS = "--checkpointing, --micro-batch with fewer rows or --precision lean"
"""what takes less memory, in the order in which to try it"""


def gigabytes(size: int) -> str:
    """A size in bytes, in units of 10^9."""
    return f"{size / 1e9:.2f}" if size >= 1e8 else f"{size / 1e9:.4f}"


def fits_sentence(needed: int, free: int | None, device: str) -> str:
    """Whether the predicted peak fits into the memory that is free; how much that is where nobody knows."""
    where = _where(device)
    if free is None:
        return f"The peak on {where} is {gigabytes(needed)} GB; how much is free there is not known."
    if needed <= free:
        return f"The peak of {gigabytes(needed)} GB fits into the {gigabytes(free)} GB that are free on {where}."
    return (
        f"The peak of {gigabytes(needed)} GB does not fit into the {gigabytes(free)} GB that are free on {where}; "
        f"give --memory auto, or {KNOBS}."
    )


def too_large_sentence(device: str, peak: int, free: int) -> str:
    """That a command ends before it begins."""
    return (
        f"the predicted peak of {gigabytes(peak)} GB does not fit into the {gigabytes(free)} GB that are free on "
        f"{_where(device)}; give --memory auto, or {KNOBS}, or --memory with a size if more will be free"
    )


def turned_sentence(device: str, needed: int, room: int | None, before: int, knobs: Sequence[str]) -> str:
    """What `--memory` has turned, if anything."""
    needs = f"the command needs {gigabytes(needed)} GB on {_where(device)} (the predicted peak and a tenth more)"
    if room is None:
        return f"T{needs[1:]}; how much is free there is not known, so nothing was turned."
    if not knobs:
        return f"T{needs[1:]} and may take {gigabytes(room)} GB; nothing was turned."
    sentence = f"With {listed(knobs)} {needs} in place of {gigabytes(before)} GB, and may take {gigabytes(room)} GB."
    if any(knob.startswith("--micro-batch") for knob in knobs):
        sentence += " The number of rows at once is a part of the run's identity."
    return sentence


def does_not_fit(
    device: str, needed: int, room: int, knobs: Sequence[str], lean: int | None, verb: str, on_host: bool
) -> str:
    """That nothing fits, and what would.

    Args:
        device: where the model is.
        needed: bytes, with all knobs that were turned.
        room: bytes that the command may take.
        knobs: what was turned, as on the command line.
        lean: bytes that lean precision needs, where it fits.
        verb: of the command.
        on_host: whether it is the host's memory that is short, with a model elsewhere.
    """
    with_all = f", with {listed(knobs)} too" if knobs else ""
    said = (
        f"the command needs {gigabytes(needed)} GB on {_where('cpu' if on_host else device)}{with_all}, and may take "
    )
    said += f"{gigabytes(room)} GB"
    if lean is not None:
        return f"{said}; give --precision lean, with which it needs {gigabytes(lean)} GB and gives other numbers"
    if device == "cpu" or on_host:
        return f"{said}; free {gigabytes(needed - room)} GB more, or lower max_length in domain.toml"
    return (
        f"{said}; split the model: torchrun --nproc-per-node {-(-needed // room)} -m holdfast {verb} … without --memory"
    )


def worker_sentence(asked: int, on_device: int, largest: str, measuring: int, unknown: Sequence[str]) -> str:
    """What memory a worker of a cluster is given, and why.

    Args:
        asked: bytes on the host.
        on_device: bytes on a device of its own; 0: the model is on the host.
        largest: the attack or the probe that takes most.
        measuring: bytes that measuring takes at most.
        unknown: attacks that are not looked at.
    """
    where = f"{gigabytes(asked)} GB on the host"
    if on_device:
        where += f", and takes {gigabytes(on_device)} GB on its GPU"
    beside = f"{largest} takes most, measuring up to {gigabytes(measuring)} GB beside it, and a tenth is spare"
    said = f"A worker asks for {where}: {beside}."
    return f"{said} The memory of {listed(unknown)} cannot be foretold and is left out." if unknown else said


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _where(device: str) -> str:
    return "this machine" if device == "cpu" else device


def memory_table(label: str, device: Mapping[str, int], host: Mapping[str, int]) -> Table:
    """The predicted peak by part, in gigabytes; `device` is empty where the model is on the host."""
    columns = {"device": device, "host": host} if device else {"host": host}
    parts = [*device, *(part for part in host if part not in device)]
    rows = [(part, *(gigabytes(sizes[part]) if part in sizes else "" for sizes in columns.values())) for part in parts]
    rows.append(("together", *(gigabytes(sum(sizes.values())) for sizes in columns.values())))
    return Table(
        caption=f"Predicted peak of memory of {label}",
        columns=(f"{label}, GB", *columns),
        rows=tuple(tuple(Entry(text) for text in row) for row in rows),
    )
