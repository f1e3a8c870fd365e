"""The command line's entry: the verbs, and how errors end."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

from holdfast.cli import calibrate, check, domain, explore, init, make, measure, share, tell
from holdfast.cli.options import RENAMED
from holdfast.cli.ranks import STOPPED, may_speak, on_ranks, on_ranks_ended, tell_launcher
from holdfast.cli.terminal import prepare_streams
from holdfast.core.escape import brief, for_terminal
from holdfast.core.memory import LESS
from holdfast.core.processes import started_by_torchrun

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Build tamper-resistant safeguards into open-weight language models, and measure what it costs to remove them.",
    epilog="Start with: holdfast demo",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def holdfast(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and end.")
    ] = False,
) -> None:
    """The options that stand before a verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Whatever the user can mend is one sentence on standard error and status 2. A verdict that `--fail-on` names is status 3.
    """
    from holdfast.core import stopping
    from holdfast.core.memory import shortage
    from holdfast.core.system import refused
    from holdfast.core.types import HoldfastError

    prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stopping.listening(), redirect_stdout(sys.stdout):  # a verb may print elsewhere from some point on
            status = on_ranks(words, _run) if started_by_torchrun() else _run(words)
        if status == STOPPED:  # Typer takes the interrupt for itself
            raise KeyboardInterrupt
        return int(status or 0) if words else 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return _report_error("stopped; run the same command again to go on", status=STOPPED)
    except stopping.Stopped:
        return _report_error("stopped by the system; run the same command again to go on", status=stopping.STATUS)
    except _Usage as error:
        return _report_error(_usage(error))
    except Exception as error:
        if short := shortage(error):
            less = _LESS.get(words[0], LESS) if words else LESS
            return _report_error(f"{short}; {less}")
        if isinstance(error, HoldfastError):
            return _report_error(str(error))
        if isinstance(error, OSError):
            return _report_error(refused(error))
        if said := started_by_torchrun() and on_ranks_ended(error):
            return _report_error(said)
        if started_by_torchrun() and not may_speak():
            return 1
        raise


def _run(words: list[str]) -> Any:
    return app(args=words or ["--help"], prog_name="holdfast", standalone_mode=False, obj=words)


_LESS = {
    "report": "report on fewer folders at a time",
    "compare": "compare fewer folders at a time",
    "card": "close other programs",
    "records": "write .jsonl, which takes less of it",
}
"""what takes less memory, by verb that runs no model"""

_Usage: type[Exception] = typer.BadParameter.__mro__[2]
"""ClickException, of click or of Typer's own copy of click"""


def _usage(error: Any) -> str:
    """The sentence on options that were not understood."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "holdfast")
    before = getattr(error, "option_name", "")
    now = f"--{RENAMED.get(before.removeprefix('--'))}"
    if context is not None and any(now in option.opts for option in context.command.params):
        return f"{before} is now called {now}; {command} --help says what it takes"
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; {command} --help shows what may be given"


def _report_error(text: str, status: int = 2) -> int:
    sentence = f"holdfast: {for_terminal(brief(text))}"
    if not started_by_torchrun():
        print(sentence, file=sys.stderr)
    elif may_speak():
        print(sentence, file=sys.stderr)
        tell_launcher(sentence)
    return status


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


app.command(epilog="Example: holdfast demo --out runs/demo --seed 0")(make.demo)
app.command(epilog="Example: holdfast testbed runs/testbed --seed 7")(make.testbed)
app.command(epilog="Example: holdfast study paper-tables --out runs/paper-tables")(explore.study)
app.command(
    epilog="Example: holdfast safeguard random-mapping tar --model runs/testbed/model --domain runs/testbed --out runs/tar "
    "--set tar.outer_steps=400"
)(make.safeguard)
app.command(
    epilog="Example: holdfast calibrate random-mapping --model runs/testbed/model --domain runs/testbed --out calibrated.toml"
)(calibrate.calibrate)
app.command(
    epilog="Example: holdfast attack full-adamw-1e-3 --model runs/tar --domain runs/testbed --out runs/attack --seed 1"
)(measure.attack)
app.command("evaluate", epilog="Example: holdfast evaluate --model runs/tar --domain runs/testbed")(measure.evaluate_)
app.command(
    epilog="Example: holdfast audit --model runs/tar --undefended runs/testbed/model --reference runs/random-mapping "
    "--never-exposed runs/testbed/never_exposed --domain runs/testbed --suite quick-2 --seeds 5 --out runs/audit"
)(measure.audit)
app.command(
    epilog="Example: holdfast search --model runs/tar --undefended runs/testbed/model --domain runs/testbed --trials 40 "
    "--out runs/search"
)(explore.search)
app.command(epilog="Example: holdfast report runs/audit runs/demo --out report.html --fail-on breached")(tell.report)
app.command(epilog="Example: holdfast compare runs/audit runs/other-audit --out compare.html")(tell.compare)
app.command(epilog="Example: holdfast card runs/audit --out runs/card.md")(tell.card)
app.command(epilog="Example: holdfast records runs/audit --out records.parquet")(tell.records)
app.command(epilog="Example: holdfast release runs/audit")(check.release)
app.command(epilog="Example: holdfast verify runs/audit")(check.verify)
app.command(epilog="Example: holdfast reproduce runs/audit/reproduce.json --plan")(check.reproduce)
app.command(epilog="Example: holdfast export inspect runs/audit --out logs")(share.export)
app.command("import", epilog="Example: holdfast import tamperbench configs/whitebox/attacks --out suite.toml")(
    share.import_
)
app.command(epilog="Example: holdfast push runs/tar my-name/my-model --yes")(share.push)
app.command("list", epilog="Examples: holdfast list · holdfast list attacks · holdfast list tar")(tell.list_)
app.add_typer(domain.app, name="domain", epilog="Example: holdfast domain check runs/testbed --json")
app.command(epilog="Example: holdfast init attack ascend-first --out my-attacks")(init.init)
