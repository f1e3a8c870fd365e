"""Verbs that exchange with other tools: export, import, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.cli.answer import JsonOption, end
from holdfast.cli.terminal import make_console, quoted, say


def export(
    context: typer.Context,
    form: Annotated[
        Literal["inspect", "lm-eval", "tamperbench"],
        typer.Argument(
            metavar="FORM",
            help="inspect: records as logs of Inspect; tamperbench: records in TamperBench's form; "
            "lm-eval: the questions of a domain as tasks.",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that audit, attack or demo wrote, or a domain.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New or empty folder to write to.")],
    as_json: JsonOption = False,
) -> None:
    """Write records or questions in the format of another tool."""
    console = make_console()
    from holdfast.cli import documents

    names, left_out = list[str](), list[str]()
    command = f"holdfast report {quoted(folder)} --out {quoted(folder / 'report.html')}"
    if form == "inspect":
        from holdfast.runs.export.inspect_logs import write_inspect_logs

        names = write_inspect_logs(folder, out)
        say(console, f"{len(names)} logs of Inspect are in {out}; they name every attack with its settings")
        say(console, f"To see them: inspect view start --log-dir {quoted(out)}")
    elif form == "tamperbench":
        from holdfast.runs.export.tamperbench_results import write_tamperbench

        names, left_out = write_tamperbench(folder, out)
        say(console, f"The results are in {out}, in TamperBench's form")
        if left_out:
            say(console, f"TamperBench has no name for, so its tables leave out: {', '.join(left_out)}")
    else:
        from holdfast.runs.export.harness_tasks import write_harness_tasks

        names = write_harness_tasks(folder, out)
        say(console, f"{len(names)} lm-eval tasks are in {out}: {', '.join(names)}")
        command = f"holdfast evaluate --model MODEL --domain {quoted(folder)} --evaluation {quoted(f'lm-eval:{out}')}"
    end(context, console, documents.Exported(form=form, folder=str(out), names=names, left_out=left_out), command)


def import_(
    context: typer.Context,
    form: Annotated[
        Literal["tamperbench"], typer.Argument(metavar="FORM", help="tamperbench: its attack settings, as a suite.")
    ],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A grid.yaml, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", help="TOML file to write.")],
    as_json: JsonOption = False,
) -> None:
    """Read another tool's attack settings into a suite, and say what has no counterpart."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.runs.tamperbench import read_grids, write_suite

    imported = read_grids(source)
    write_suite(imported, out)
    say(console, f"{len(imported.attacks)} attacks are in {out}")
    for where, why in imported.left_out.items():
        say(console, f"Left out, {where}: {why}")
    end(
        context,
        console,
        documents.Imported(path=str(out), attacks=list(imported.attacks), left_out=dict(imported.left_out)),
        f"holdfast audit --model MODEL --undefended ORIGINAL --domain DOMAIN --suite {quoted(out)} --out runs/audit",
    )


def push(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint that safeguard wrote, with its card.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload. Without this, only say what would be uploaded.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see the repository; private by default.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a safeguarded checkpoint with its card to the Hugging Face hub; attacked weights are refused."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.runs.push import plan_upload, upload

    plan, address, command = plan_upload(str(model), repository), None, None
    seen = "public" if public else "private"
    what = f"{len(plan.files)} files, {plan.size / 1e6:,.1f} MB, to the {seen} repository {repository}"
    if yes:
        address = upload(plan, public=public)
        say(console, f"Uploaded {what}: {address}")
    else:
        say(console, f"This would upload {what}: {', '.join(plan.files)}")
        command = f"holdfast push {quoted(model)} {repository}{' --public' if public else ''} --yes"
    document = documents.Pushed(
        repository=repository, public=public, files=list(plan.files), size=plan.size, address=address
    )
    end(context, console, document, command)
