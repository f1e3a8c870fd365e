"""What reaches the terminal: text from outside as data, in letters that the terminal has."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from holdfast.core.escape import for_shell, for_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_PLAIN = {
    "–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "±": "+-", "≥": ">=", "≤": "<=", "·": "|", "✓": "+", "✗": "x",
    "“": '"', "”": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u202f": " ", "ε": "epsilon",
}  # fmt: skip
"""Our own signs for a terminal that has ASCII or Latin-1 only."""

_ERRORS = "holdfast"
"""The name of the codec's error handler that writes what a stream cannot hold in ASCII."""


def prepare_streams() -> None:
    """Make sure that no character stops a run: one that the stream cannot write is written as ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter) or for_terminal(ascii(letter)[1:-1]) for letter in letters), error.end


codecs.register_error(_ERRORS, _in_ascii)


def make_console() -> Console:
    """A console that takes no text for markup, for the name of an emoji, or for something to colour."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def literal(text: str, style: str = "") -> Text:
    """A text on one line, as the terminal can show it."""
    from rich.text import Text

    letters = getattr(sys.stdout, "encoding", None) or "utf-8"  # there may be no standard output
    return Text(for_terminal(text).encode(letters, _ERRORS).decode(letters), style)


def say(console: Console, text: str | Text, style: str = "") -> None:
    """Print a line, which the terminal itself may break."""
    console.print(literal(text, style) if isinstance(text, str) else text, soft_wrap=True)


def say_next(console: Console, command: str) -> None:
    """Suggest the next command, in words that this shell understands: the environment may not be on its path."""
    import shutil

    started = Path(sys.argv[0])
    if started.name == "holdfast" and shutil.which("holdfast") is None:
        command = quoted(os.path.relpath(started)) + command.removeprefix("holdfast")
    say(console, f"Next: {command}")


def quoted(word: Path | str) -> str:
    return for_shell(str(word))


def fail(text: str) -> NoReturn:
    from holdfast.core.types import HoldfastError

    raise HoldfastError(text)
