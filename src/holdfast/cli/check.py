"""Verbs that check an audit: verify and reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from holdfast.cli.options import PluginsOption, WorkersOption, model_label
from holdfast.cli.terminal import fail, make_console, quoted, say, say_next, this_command
from holdfast.core.outside import load_plugins


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit wrote.")],
    page: Annotated[
        Optional[list[Path]],
        typer.Option(
            "--page", help="A report of this audit, .html, with .md and .json beside it; default: DIR/report.html."
        ),
    ] = None,
    model: Annotated[
        Optional[list[Path]],
        typer.Option("--model", help="A model's folder, as released: are these the audited weights? Repeatable."),
    ] = None,
) -> None:
    """Check an audit against itself: hashes, the page's numbers by a plain script, and the page made anew."""
    console = make_console()
    from holdfast.report.verify import verify as verified
    from holdfast.report.words.verify import sentences

    def digest_of(path: Path) -> str:
        from holdfast.engine.checkpoint import Checkpoint

        return Checkpoint(str(path)).digest

    found = verified(folder, digest_of, page or (), model or ())
    for sentence in sentences(found):
        say(console, sentence)
    if any(one.wrong for one in found):
        raise typer.Exit(1)
    say_next(console, f"holdfast report {quoted(folder)} --public --out {quoted(folder / 'public.html')}")


def reproduce(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="reproduce.json, which audit writes beside its records.")
    ],
    model: Annotated[Optional[str], typer.Option("--model", help="The model under test.")] = None,
    undefended: Annotated[Optional[str], typer.Option("--undefended", help="The model before any safeguard.")] = None,
    domain: Annotated[Optional[Path], typer.Option("--domain", help="Folder with domain.toml.")] = None,
    reference: Annotated[
        Optional[str], typer.Option("--reference", help="The shallow safeguard, if there was one.")
    ] = None,
    never_exposed: Annotated[
        Optional[str],
        typer.Option("--never-exposed", help="The control that never learned the hazard, if there was one."),
    ] = None,
    peer: Annotated[
        Optional[list[str]], typer.Option("--peer", help="The other safeguarded models; repeatable.")
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder to write the new audit to.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what is needed and, of what is given, whether it is the same.")
    ] = False,
    workers: WorkersOption = 2,
    device: Annotated[Optional[str], typer.Option("--device", help="cpu, cuda or cuda:N; default: as in FILE.")] = None,
    plugins: PluginsOption = None,
) -> None:
    """Make an audit again from what its laboratory wrote down, and compare. Stop and restart at will."""
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.core.reproduction import Reproduction
    from holdfast.report.words import reproduction as words

    first = Reproduction.read(file)
    for sentence in words.plan(first):
        say(console, sentence)
    if plan and not (model or undefended or domain):
        say_next(console, first.command.replace("reproduce.json", quoted(file), 1))
        return
    if model is None or undefended is None or domain is None:
        fail(
            "--model, --undefended and --domain are needed; holdfast reproduce FILE --plan says what the first audit had"
        )
    if out is None and not plan:
        fail("--out is needed: the folder to write the new audit to")
    from holdfast.cli.options import check_device
    from holdfast.runs.reproduction import audit_again, known_runs, other_inputs, other_versions

    check_device(device or first.device, first.precision)
    audit = audit_again(
        first, model=model, undefended=undefended, domain=domain, reference=reference, never_exposed=never_exposed,
        peers=tuple(peer or ()), device=device,
    )  # fmt: skip
    others = [words.other_input(o.kind, o.name, o.there, o.here) for o in other_inputs(first, audit)]
    for sentence in words.versions(other_versions(first)):
        say(console, sentence)
    if others:
        fail(words.mismatch(others))
    say(console, words.known(known_runs(first, audit), len(first.runs)))
    if plan or out is None:
        elsewhere = out or file.parent.with_name(f"{file.parent.resolve().name}-again")
        say_next(console, this_command().replace(" --plan", "") + ("" if out else f" --out {quoted(elsewhere)}"))
        return
    from holdfast.cli.display import show_jobs
    from holdfast.cli.say import finish
    from holdfast.core.records import read_campaign
    from holdfast.stats.reproduction import compare
    from holdfast.stats.summary import summarise

    title = f"Audit of {model_label(model)}, made again"
    with show_jobs(console, title) as on_progress:
        audit.run(out, workers, title=title, suite=first.suite, command=this_command(), on_progress=on_progress)
    finish(console, out)
    made, results = read_campaign(out)
    outcome = compare(first, made, results, summarise(made, results))
    for sentence in words.compared(outcome):
        say(console, sentence)
    if not outcome.agrees:
        raise typer.Exit(1)
    say_next(console, f"holdfast verify {quoted(out)}")
