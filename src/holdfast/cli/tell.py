"""Verbs that tell what was measured: report, compare, card, records, list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import FailOnOption, JsonOption, end, exit_on
from holdfast.cli.listing import KINDS, listing, unknown
from holdfast.cli.options import PluginsOption, ReleaseOption
from holdfast.cli.say import described
from holdfast.cli.terminal import literal, make_console, quoted, say
from holdfast.core.outside import load_plugins


def report(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders that audit, attack or demo wrote.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file; the same goes beside it as .md and .json.")],
    public: Annotated[
        bool, typer.Option("--public", help="Name families of attack and budgets, no settings and no command.")
    ] = False,
    release: ReleaseOption = None,
    auditor: Annotated[
        str,
        typer.Option("--auditor", metavar="NAME", help="Who answers for the audit; else a line to fill in by hand."),
    ] = "",
    date: Annotated[
        str, typer.Option("--date", metavar="YYYY-MM-DD", help="Of the sign-off; else a line to fill in by hand.")
    ] = "",
    fail_on: FailOnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the report again from records: one HTML file, and the same as Markdown and JSON."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.report.page import build_report
    from holdfast.report.sign_off import Signing

    signing = Signing(auditor=auditor, date=date)
    made = build_report(folders, out, public=public, release=release, signing=signing)
    say(console, f"The report is {out}")
    audits = [described(section, folder, out) for section, folder in zip(made.sections, folders, strict=True)]
    document = documents.Report(
        public=public, html=str(made.html), markdown=str(made.markdown), json=str(made.json), audits=audits
    )
    if public:
        command = f"holdfast card {quoted(folders[0])} --out {quoted(out.with_name('card.md'))}"
    else:
        command = f"holdfast report {quoted(folders[0])} --public --out {quoted(out.with_name('public.html'))}"
    end(context, console, document, command)
    exit_on(console, fail_on, [(line.model, line.verdict) for audit in audits for line in audit.verdicts])


def compare(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders that audit wrote, two or more.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file; the same goes beside it as .md and .json.")],
    as_json: JsonOption = False,
) -> None:
    """Lay audits side by side: what may be compared, what ties, what is unreliable."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.report.compare import compare_audits

    groups = compare_audits(folders, out)
    for group in groups:
        say(console, f"{group.title}: {len(group.table.rows)} models")
    say(console, f"The comparison is {out}")
    table = json.loads(out.with_suffix(".json").read_bytes())
    end(
        context,
        console,
        documents.Comparison(html=str(out), groups=table["groups"]),
        f"holdfast report {quoted(folders[0])} --out {quoted(out.with_name('report.html'))}",
    )


def card(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Markdown file; of a README.md only the section is replaced.")],
    as_json: JsonOption = False,
) -> None:
    """Write the section for a Hugging Face model card from the public form: Markdown and `model-index`."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.report.card import write_card

    write_card(folder, out)
    say(console, f"The card is {out}")
    end(
        context,
        console,
        documents.Written(path=str(out)),
        f"holdfast report {quoted(folder)} --public --out {quoted(out.with_name('public.html'))}",
    )


def records(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit, attack or demo wrote.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .jsonl or .parquet.")],
    as_json: JsonOption = False,
) -> None:
    """Write all records of an audit as one table with a row for each value: JSON lines or Parquet."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.core.export import write_records

    count = write_records(folder, out)
    say(console, f"{count:,} records are in {out}")
    end(
        context,
        console,
        documents.Written(path=str(out), records=count),
        f"holdfast report {quoted(folder)} --out {quoted(out.with_name('report.html'))}",
    )


def list_(
    context: typer.Context,
    what: Annotated[
        Optional[str],
        typer.Argument(
            metavar="[attacks|safeguards|evaluations|suites|PRESET]",
            autocompletion=complete.listed,
            help="What to show.",
        ),
    ] = None,
    plugins: PluginsOption = None,
    as_json: JsonOption = False,
) -> None:
    """List attacks, safeguards, evaluations or suites, or show one preset with its fields."""
    console = make_console()
    load_plugins(*plugins or ())
    if as_json:
        end(context, console, listing(what), None)
        return
    from inspect import cleandoc

    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from holdfast.core.presets import collect, families, fields
    from holdfast.runs.suites import suites

    presets = {kind: collect(package) for kind, package in KINDS.items()}
    for kind, package in KINDS.items():
        if what in (None, kind):
            say(console, kind, "italic")
            for title, names in families(package).items():
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
    if what not in (None, *presets, "suites") and not named:
        raise unknown(str(what))
