"""Verbs on domain folders: make one from public data sets, and check one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from holdfast.cli.answer import JsonOption, end
from holdfast.cli.options import RemoteCodeOption, SeedOption
from holdfast.cli.terminal import fail, literal, make_console, quoted, say

if TYPE_CHECKING:
    from rich.console import Console

    from holdfast.runs.domains.check import Checked

app = typer.Typer(
    no_args_is_help=True,
    help="Make a domain folder from public data sets, or check one before anything is trained on it.",
)


@app.command(
    epilog="Example: holdfast domain make tofu runs/tofu --model open-unlearning/tofu_Llama-3.2-1B-Instruct_full "
    "--source locuslab/TOFU=downloads/TOFU"
)
def make(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="wmdp-bio, wmdp-chem, wmdp-cyber, tofu or harmful-requests.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    source: Annotated[
        Optional[list[str]],
        typer.Option(
            "--source",
            metavar="ROLE=PATH",
            help="A file, a folder or another hub set in place of a source; ROLE may be a public set's name. Repeatable.",
        ),
    ] = None,
    without: Annotated[
        Optional[list[str]], typer.Option("--without", metavar="ROLE", help="Leave out an optional source; repeatable.")
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option("--model", help="Where requests are written: the model whose chat template they are written in."),
    ] = None,
    seed: SeedOption = 0,
    rows: Annotated[int, typer.Option("--rows", min=10, help="Rows of a role at most.")] = 4000,
    questions: Annotated[
        int, typer.Option("--questions", min=10, help="Questions of an ability set at most; hazard sets are whole.")
    ] = 500,
    as_json: JsonOption = False,
) -> None:
    """Prepare the public sets of a hazard proxy as a domain folder. Sets that are gated or absent say how to ask for them."""
    console = make_console()
    from dataclasses import asdict

    from holdfast.cli.documents import DomainMade
    from holdfast.runs.domains.make import make_domain
    from holdfast.runs.domains.preparing import Sizes

    sizes = Sizes(seed=seed, rows=rows, questions=questions)
    made = make_domain(name, folder, _places(source or []), without or [], model, sizes)
    for opened in made.opened:
        say(console, f"{opened.role}: {opened.rows:,} rows from {opened.place}")
    in_all, asked = sum(made.rows.values()), sum(made.questions.values())
    say(console, f"The domain is in {folder}: {in_all:,} rows in {len(made.rows)} roles, {asked:,} questions")
    document = DomainMade(
        domain=name,
        folder=str(folder),
        rows=dict(made.rows),
        questions=dict(made.questions),
        sources=[asdict(opened) for opened in made.opened],
    )
    command = f"holdfast domain check {quoted(folder)}" + (f" --model {quoted(model)}" if model else "")
    end(context, console, document, command)


def _places(sources: list[str]) -> dict[str, str]:
    places: dict[str, str] = {}
    for entry in sources:
        role, equals, place = entry.partition("=")
        if not equals or not role or not place:
            fail(f"--source {entry} names no place; give --source ROLE=PATH")
        places[role] = place
    return places


@app.command(epilog="Example: holdfast domain check runs/tofu --model runs/tofu/model --json")
def check(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with domain.toml.")],
    model: Annotated[
        Optional[str], typer.Option("--model", help="Count tokens, cut rows and positions as this model has them.")
    ] = None,
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look a domain folder through: samples, lengths, duplicates, overlaps, and what is missing for what."""
    console = make_console()
    from dataclasses import asdict

    from holdfast.cli.documents import DomainChecked
    from holdfast.runs.domains.check import check_domain

    checked = check_domain(folder, model, trust_remote_code)
    _show(console, checked)
    document = DomainChecked(
        name=checked.name,
        max_length=checked.max_length,
        model=checked.model,
        roles=[asdict(role) for role in checked.roles],
        sets=[asdict(asked) for asked in checked.sets],
        findings=asdict(checked.findings),
        missing=[asdict(missing) for missing in checked.missing],
        stops=list(checked.stops),
    )
    flag = f" --model {quoted(model)}" if model else " --model MODEL"
    end(context, console, document, None if checked.stops else f"holdfast evaluate{flag} --domain {quoted(folder)}")
    if checked.stops:
        more = "" if len(checked.stops) == 1 else f" (and {len(checked.stops) - 1} more)"
        fail(f"{checked.stops[0]}{more}")


def _show(console: Console, checked: Checked) -> None:
    from holdfast.report.words.data import objections
    from holdfast.report.words.domains import wants
    from holdfast.runs.domains.check import family_counts

    for table in (_roles(checked), _sets(checked)):
        console.print(table)
    objected = objections(checked.findings)
    for sentence in objected or ["No two sets that are to be apart have anything in common."]:
        say(console, sentence)
    for missing in checked.missing:
        families = family_counts(missing.kind, missing.names)
        say(console, wants(missing.kind, missing.needs, families, missing.names, missing.of))
    for stop in checked.stops:
        say(console, f"Stops a run: {stop}")


def _roles(checked: Checked) -> object:
    from rich.table import Table

    unit = checked.roles[0].lengths.unit if checked.roles else "words"
    columns = ("rows of", "held by", "rows", "kind", "repeated", "in all", "median", "longest", "cut")
    table = Table(
        title=literal(f"{checked.name}, rows, lengths in {unit}"), box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        left = column in ("rows of", "held by", "kind")
        table.add_column(literal(column), justify="left" if left else "right", no_wrap=True)
    for role in checked.roles:
        kind = "pairs" if role.pairs == role.rows else "chat" if role.conversations == role.rows else "text"
        mixed = 0 < role.pairs < role.rows or 0 < role.conversations < role.rows
        cells = (
            role.role, role.holder, f"{role.rows:,}", "mixed" if mixed else kind, f"{role.repeated:,}",
            f"{role.lengths.total:,}", f"{role.lengths.median:.0f}", f"{role.lengths.longest:,}",
            "" if role.cut is None else f"{role.cut:,}",
        )  # fmt: skip
        table.add_row(*map(literal, cells))
    return table


def _sets(checked: Checked) -> object:
    from rich.table import Table

    unit = checked.sets[0].lengths.unit if checked.sets else "words"
    columns = ("questions", "measures", "number", "options", "commonest", "repeated", "longest")
    table = Table(
        title=literal(f"{checked.name}, questions, lengths in {unit}"), box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        table.add_column(
            literal(column), justify="left" if column in ("questions", "measures") else "right", no_wrap=True
        )
    for asked in checked.sets:
        least, most = asked.options
        cells = (
            asked.name, asked.measures, f"{asked.questions:,}", str(most) if least == most else f"{least}–{most}",
            f"{100 * asked.commonest:.0f} %", f"{asked.repeated:,}", f"{asked.lengths.longest:,}",
        )  # fmt: skip
        table.add_row(*map(literal, cells))
    return table
