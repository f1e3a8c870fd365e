"""A table as rows of text: one form for HTML, Markdown and the terminal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

LONG = 15
"""rows from which on a page folds a table away"""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The positions of a model's figures between 0 and 1."""

    mean: float
    high: float
    chance: float | None
    floor: float | None
    """the never-exposed model's mean"""


@dataclass(frozen=True)
class Entry:
    """One table cell: a figure, its note (which may have several lines), and its shade."""

    text: str
    note: str = ""
    tag: str = ""
    shade: float | None = None
    """0 to 1: hazard, for the background"""
    strip: Strip | None = None
    link: str = ""
    """the id of what the figure was made from"""
    anchor: str = ""
    """in the first cell of a row: the id of the row"""

    @property
    def line(self) -> str:
        """The cell on one line, with the note in brackets."""
        beside = ", ".join(part for part in (self.tag, *self.note.splitlines()) if part)
        return f"{self.text} ({beside})" if self.text and beside else self.text or beside


@dataclass(frozen=True, kw_only=True)
class Table:
    """A captioned table; the first column of every row is its heading."""

    form: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    look: str = ""
    """its class in the style sheet"""
    folded: str = ""
    """the line under which the page folds the table away; empty: it does not, unless the table is long"""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.rows)

    @property
    def fold(self) -> str:
        """The line under which the page folds the table away; empty: it does not."""
        return self.folded or (f"{self.caption} ({len(self.rows)} rows)" if len(self.rows) > LONG else "")

    @property
    def undrawn(self) -> Table:
        """The table without the columns that are drawn."""
        kept = [place for place in range(len(self.columns)) if not any(row[place].strip for row in self.rows)]
        return replace(
            self,
            columns=tuple(self.columns[place] for place in kept),
            rows=tuple(tuple(row[place] for place in kept) for row in self.rows),
        )

    def records(self) -> list[dict[str, str]]:
        """A mapping from column to text for each row."""
        return [dict(zip(self.columns, (entry.text for entry in row), strict=True)) for row in self.rows]
