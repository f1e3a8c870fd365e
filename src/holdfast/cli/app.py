"""The command line's entry: the verbs, and how errors end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

from holdfast.cli import make, measure, tell

app = typer.Typer(
    name="holdfast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Build tamper-resistant safeguards into open-weight language models, and measure what it costs to remove them.",
    epilog="Start with: holdfast demo",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Whatever the user can mend is one sentence on standard error and status 2.
    """
    from holdfast.core.types import HoldfastError

    try:
        # Typer's own messages (unknown options and the like) are printed by it; it then raises SystemExit.
        app(args=list(arguments) if arguments is not None else None)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except HoldfastError as error:
        return _report_error(str(error))
    except KeyboardInterrupt:
        return _report_error("stopped; run the same command again to go on", status=130)
    except OSError as error:
        import errno

        # The second name is where a temporary file was to go.
        where = f" ({error.filename2 or error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _report_error(f"the disk is full{where}; free some space and run the same command again to go on")
        return _report_error(f"{error.strerror or error}{where}; check the path and its permissions")
    return 0


def _report_error(text: str, status: int = 2) -> int:
    print(f"holdfast: {text}", file=sys.stderr)
    return status


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


app.command(epilog="Example: holdfast demo --out runs/demo --seed 0")(make.demo)
app.command(epilog="Example: holdfast testbed runs/testbed --seed 7")(make.testbed)
app.command(epilog="Example: holdfast study paper-tables --out runs/paper-tables")(measure.study)
app.command(
    epilog="Example: holdfast safeguard random-mapping tar --model runs/testbed/model --domain runs/testbed --out runs/tar "
    "--set tar.outer_steps=400"
)(make.safeguard)
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
)(measure.search)
app.command(epilog="Example: holdfast report runs/audit runs/demo --out report.html")(tell.report)
app.command(epilog="Example: holdfast compare runs/audit runs/other-audit --out compare.html")(tell.compare)
app.command(epilog="Example: holdfast card runs/audit --out runs/card.md")(tell.card)
app.command(epilog="Example: holdfast records runs/audit --out records.parquet")(tell.records)
app.command("list", epilog="Examples: holdfast list · holdfast list attacks · holdfast list tar")(tell.list_)
