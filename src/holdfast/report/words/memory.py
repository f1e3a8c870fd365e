"""The sentences on the memory that a command will take."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.report.table import Entry, Table

KNOBS = "--micro-batch with fewer rows, --checkpointing or --precision lean"
"""what takes less memory, in the order in which to try it"""


def gigabytes(size: int) -> str:
    """A size in bytes, in units of 10^9."""
    return f"{size / 1e9:.2f}" if size >= 1e8 else f"{size / 1e9:.4f}"


def fits_sentence(needed: int, free: int | None, device: str) -> str:
    """Whether the predicted peak fits into the memory that is free; how much that is where nobody knows."""
    where = "this machine" if device == "cpu" else device
    if free is None:
        return f"The peak on {where} is {gigabytes(needed)} GB; how much is free there is not known."
    if needed <= free:
        return f"The peak of {gigabytes(needed)} GB fits into the {gigabytes(free)} GB that are free on {where}."
    return (
        f"The peak of {gigabytes(needed)} GB does not fit into the {gigabytes(free)} GB that are free on {where}; "
        f"give {KNOBS}."
    )


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
