"""How a verb ends: with the command that comes next for a person, with one JSON document for a program.

With `--json` standard output belongs to the document alone. Whatever else is printed, by us or by a library, goes to standard
error.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.terminal import fail, quoted, say, say_next

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from holdfast.cli.documents import Document

FAILED_ON = 3
"""the exit status of a command whose verdict is one that `--fail-on` names"""

CARRIED = (
    "plugins", "track", "device", "precision", "micro_batch", "matmul", "checkpointing", "trust_remote_code", "threads",
    "executor", "workers", "cluster", "ranks",
)  # fmt: skip
"""options that the next command takes over: they belong to the machine and the model"""

_STREAM = "holdfast.stdout"


def _divert(context: typer.Context, wanted: bool) -> bool:
    if wanted and not context.resilient_parsing:
        divert(context)
    return wanted


def divert(context: typer.Context) -> None:
    """Keep standard output for the document; print all else to standard error until the command ends."""
    if _STREAM not in context.meta:
        context.meta[_STREAM] = sys.stdout
        sys.stdout = sys.stderr  # `main` puts it back


JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", is_eager=True, callback=_divert, help="Print one JSON document; all else goes to standard error."
    ),
]


def _verdicts(text: Optional[str]) -> Optional[str]:
    failing(text)
    return text


FailOnOption = Annotated[
    Optional[str],
    typer.Option(
        "--fail-on",
        metavar="VERDICTS",
        autocompletion=complete.verdicts,
        callback=_verdicts,
        help=f"End with status {FAILED_ON} where a model under test has one of these verdicts: breached,undecided,…",
    ),
]


def end(context: typer.Context, console: Console, document: Document, command: str | None) -> None:
    """End a verb: print the document, or suggest the next command with the options that this one was given.

    Args:
        context: of the verb.
        console: for people.
        document: what the verb did.
        command: the next one; None: there is none.
    """
    command = None if command is None else carried(context, command)
    if _STREAM in context.meta:
        from holdfast.cli.documents import as_json

        print(as_json(replace(document, next=command)), file=context.meta[_STREAM])
    elif command is not None:
        say_next(console, command)


def carried(context: typer.Context, command: str) -> str:
    """A command with those of `CARRIED` that the verb was given and that the command can take."""
    verbs: Any = context.find_root().command
    verb = command.split(" ")[1]
    for option in verbs.commands[verb].params if hasattr(verbs, "commands") else ():
        name, flag = option.name, option.opts[0]
        if (
            name not in CARRIED
            or name not in context.params
            or not is_given(context, name)
            or f" {flag} " in f"{command} "
        ):
            continue
        value = context.params[name]
        for one in value if isinstance(value, (list, tuple)) else [value]:
            command += f" {flag}" + ("" if one is True else f" {quoted(str(one))}")
    return command


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave the option, on the command line or in a file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def command_of(context: typer.Context, *without: str) -> str:
    """The verb with the options that it was given, as one command: what stands in a file of options too.

    Args:
        context: of the verb.
        without: names of options that are left out.
    """
    words = ["holdfast", context.info_name or ""]
    for option in sorted(context.command.params, key=lambda option: option.param_type_name != "argument"):
        value = context.params.get(option.name or "")
        if option.name in without or not value or not is_given(context, option.name or ""):
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [option.opts[0]] if option.param_type_name == "option" else []
            words += [] if one is True else [str(one)]
    return " ".join(map(quoted, words))


def failing(text: str | None) -> tuple[str, ...]:
    """The verdicts that `--fail-on` names.

    Raises:
        HoldfastError: one of them is no verdict.
    """
    from typing import get_args

    from holdfast.core.domain import nearest
    from holdfast.core.reading import excerpt
    from holdfast.stats.figures import Verdict

    known = {verdict.replace(" ", "-"): verdict for verdict in get_args(Verdict)}
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in known:
            fail(f"--fail-on {excerpt(name)} is no verdict; {nearest(name, known)}")
    return tuple(known[name] for name in names)


def exit_on(console: Console, text: str | None, verdicts: Iterable[tuple[str, str]]) -> None:
    """End the command with `FAILED_ON` where a model has one of the verdicts that `--fail-on` names.

    Args:
        console: for people.
        text: of `--fail-on`.
        verdicts: (model, verdict).
    """
    wanted = failing(text)
    if hit := [f"{model} is {verdict}" for model, verdict in verdicts if verdict in wanted]:
        say(console, f"The exit status is {FAILED_ON}: {', '.join(hit)}.")
        raise typer.Exit(FAILED_ON)
