"""The verb that begins something of the user's own: init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.cli.answer import JsonOption, end
from holdfast.cli.terminal import make_console, quoted, say


def init(
    context: typer.Context,
    kind: Annotated[
        Literal["attack", "safeguard", "evaluation", "domain"], typer.Argument(metavar="KIND", help="What to begin.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name: small letters, digits and hyphens.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a working start of a plug-in of your own, or of a domain, with a test: files to change until they are yours."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.runs.start import write_start

    made, test = write_start(kind, name, out)
    say(console, f"The {kind} is in {made}, its test in {test}")
    say(console, f"The test is run by: python -m pytest {quoted(test)}")
    checks = f"holdfast domain check {quoted(made)}"
    command = checks if kind == "domain" else f"holdfast list {name} --plugins {quoted(made)}"
    end(context, console, documents.Begun(what=kind, path=str(made), test=str(test)), command)
