"""How values show themselves to a person at a prompt or in a notebook, and as a table of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.core.escape import for_html
from holdfast.core.types import HoldfastError

if TYPE_CHECKING:
    import pandas


def html(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], sentences: Iterable[str] = ()) -> str:
    """A titled table as HTML, with sentences above; all texts are escaped.

    Args:
        title: of the table.
        columns: the first is of names, all others are of figures.
        rows: a text for each column.
        sentences: a paragraph each.
    """
    cells = "".join(f"<th>{for_html(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{for_html(text)}</td>' for text in row)}</tr>" for row in rows)
    above = "".join(f"<p>{for_html(sentence)}</p>" for sentence in sentences)
    return (
        f"<div><strong>{for_html(title)}</strong>{above}"
        f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pandas.DataFrame:
    """The rows as a data frame.

    Raises:
        HoldfastError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise HoldfastError("a data frame needs pandas; install it with: pip install pandas") from error
    return pandas.DataFrame(list(rows), columns=None if columns is None else list(columns))
