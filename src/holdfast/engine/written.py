"""Rows that a model has written for a run, kept with the run's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch

from holdfast.engine.data import Encoded
from holdfast.engine.run import Run


def written_once(run: Run, name: str, write: Callable[[], list[Encoded]]) -> list[Encoded]:
    """The rows of `write`; a run that goes on has those from before, and neither writes them again nor counts them twice."""
    kept = _Written()
    run.track(**{name: kept})
    if kept.rows is None:
        kept.rows = write()
    return kept.rows


class _Written:
    def __init__(self) -> None:
        self.rows: list[Encoded] | None = None

    def state_dict(self) -> dict[str, Any]:
        rows = self.rows or []
        return {
            "ids": torch.tensor([token for row in rows for token in row.ids], dtype=torch.int32),
            "labels": torch.tensor([label for row in rows for label in row.labels], dtype=torch.int32),
            "lengths": torch.tensor([len(row.ids) for row in rows], dtype=torch.int32),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ids, labels = (tuple(state[name].tolist()) for name in ("ids", "labels"))
        ends = accumulate(state["lengths"].tolist(), initial=0)
        self.rows = [Encoded(ids[begin:end], labels[begin:end]) for begin, end in pairwise(ends)]
