"""Verbs that tell what was measured: report, compare, card, records, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from holdfast.cli.options import PluginsOption
from holdfast.cli.terminal import fail, literal, make_console, quoted, say, say_next
from holdfast.core.outside import load_plugins


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders that audit, attack or demo wrote.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file; the same goes beside it as .md and .json.")],
    public: Annotated[
        bool, typer.Option("--public", help="Name families of attack and budgets, no settings and no command.")
    ] = False,
) -> None:
    """Make the report anew from records: one HTML file, and the same as Markdown and JSON."""
    console = make_console()
    from holdfast.report.page import build_report

    build_report(folders, out, public=public)
    say(console, f"The report is {out}")
    if public:
        say_next(console, f"holdfast card {quoted(folders[0])} --out {quoted(out.with_name('card.md'))}")
    else:
        say_next(console, f"holdfast report {quoted(folders[0])} --public --out {quoted(out.with_name('public.html'))}")


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders that audit wrote, two or more.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file; the same goes beside it as .md and .json.")],
) -> None:
    """Lay audits side by side: what may be compared, what ties, what is unreliable."""
    console = make_console()
    from holdfast.report.compare import compare_audits

    groups = compare_audits(folders, out)
    for group in groups:
        say(console, f"{group.title}: {len(group.table.rows)} models")
    say(console, f"The comparison is {out}")
    say_next(console, f"holdfast report {quoted(folders[0])} --out {quoted(out.with_name('report.html'))}")


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Markdown file; a README.md is given the section in its place.")],
) -> None:
    """Write the section for a Hugging Face model card from the public form: Markdown and `model-index`."""
    console = make_console()
    from holdfast.report.card import write_card

    write_card(folder, out)
    say(console, f"The card is {out}")
    say_next(console, f"holdfast report {quoted(folder)} --public --out {quoted(out.with_name('public.html'))}")


def records(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit, attack or demo wrote.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .jsonl or .parquet.")],
) -> None:
    """Write all records of an audit as one table, a row a measured value: JSON lines or Parquet."""
    console = make_console()
    from holdfast.core.export import write_records

    count = write_records(folder, out)
    say(console, f"{count:,} records are in {out}")
    say_next(console, f"holdfast report {quoted(folder)} --out {quoted(out.with_name('report.html'))}")


def list_(
    what: Annotated[
        Optional[str], typer.Argument(metavar="[attacks|safeguards|evaluations|suites|PRESET]", help="What to show.")
    ] = None,
    plugins: PluginsOption = None,
) -> None:
    """Show what there is: attacks, safeguards, evaluations, suites, or one preset with its fields."""
    console = make_console()
    load_plugins(*plugins or ())
    from inspect import cleandoc

    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from holdfast.core.domain import nearest
    from holdfast.core.presets import collect, families, fields
    from holdfast.core.reading import excerpt
    from holdfast.runs.suites import suites

    kinds = {"safeguards": "safeguards", "attacks": "attacks", "evaluations": "evals"}
    presets = {kind: collect(f"holdfast.{package}") for kind, package in kinds.items()}
    for kind, package in kinds.items():
        if what in (None, kind):
            say(console, kind, "italic")
            for title, names in families(f"holdfast.{package}").items():
                console.print(Padding(literal(title, "dim"), (0, 0, 0, 2)))
                console.print(Padding(literal("  ".join(names)), (0, 0, 0, 4)))
    if what in (None, "suites"):
        say(console, "suites", "italic")
        for name, suite in suites().items():
            console.print(Padding(literal(f"{name}, version {suite.version}: {suite.about}"), (0, 0, 0, 2)))
            attacks = literal(f"{suite.budget}: {', '.join(suite.attacks)}", "dim")
            console.print(Padding(attacks, (0, 0, 0, 4)))
    named = [group[what] for group in presets.values() if what is not None and what in group]
    for preset in named:
        first, *rest = f"{type(preset).__name__}: {cleandoc(type(preset).__doc__ or '')}".splitlines()
        say(console, Text.assemble(literal(str(what), "bold"), literal(f"  {first}")))
        for line in rest:
            say(console, line)
        table = Table("field", "default", "meaning", box=None, padding=(0, 2))
        for field in fields(preset):
            table.add_row(*map(literal, (field.name, repr(field.value), field.doc)))
        console.print(table)
    if what is not None and what not in (*presets, "suites") and not named:
        known = [*presets, "suites", *(name for group in presets.values() for name in group)]
        fail(f"there is nothing named {excerpt(what)} to list; {nearest(what, known)}")
