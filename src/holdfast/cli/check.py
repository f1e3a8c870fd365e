"""Verbs that check an audit and state what only a person can: verify, reproduce, release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from holdfast.cli.answer import JsonOption, command_of, end
from holdfast.cli.executors import ClusterOption, ExecutorOption, RanksOption, workers_of
from holdfast.cli.memory import memory_of_worker
from holdfast.cli.options import PluginsOption, WorkersOption, model_label
from holdfast.cli.terminal import fail, make_console, quoted, say
from holdfast.core.outside import load_plugins


def verify(
    context: typer.Context,
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
    as_json: JsonOption = False,
) -> None:
    """Check an audit against itself: hashes, the page's numbers by a plain script, and the page made anew."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.report.verify import verify as verified
    from holdfast.report.words.verify import sentences

    def digest_of(path: Path) -> str:
        from holdfast.engine.checkpoint import Checkpoint

        return Checkpoint(str(path)).digest

    found = verified(folder, digest_of, page or (), model or ())
    said, sound = list(sentences(found)), not any(one.wrong for one in found)
    for sentence in said:
        say(console, sentence)
    command = f"holdfast report {quoted(folder)} --public --out {quoted(folder / 'public.html')}"
    document = documents.Verified(folder=str(folder), sound=sound, sentences=said)
    end(context, console, document, command if sound else None)
    if not sound:
        raise typer.Exit(1)


def reproduce(
    context: typer.Context,
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
    sibling: Annotated[
        Optional[str],
        typer.Option("--sibling", help="The model that the attacker holds in the original's place, if there was one."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder to write the new audit to.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what is needed and, of what is given, whether it is the same.")
    ] = False,
    executor: ExecutorOption = "local",
    workers: WorkersOption = 2,
    cluster: ClusterOption = None,
    ranks: RanksOption = 1,
    device: Annotated[Optional[str], typer.Option("--device", help="cpu, cuda or cuda:N; default: as in FILE.")] = None,
    plugins: PluginsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an audit again from what its laboratory wrote down, and compare. Stop and restart at will."""
    console = make_console()
    load_plugins(*plugins or ())
    from holdfast.cli import documents
    from holdfast.core.reproduction import Reproduction
    from holdfast.report.words import reproduction as words

    first = Reproduction.read(file)
    said: list[str] = []

    def tell(*sentences: str) -> None:
        said.extend(sentences)
        for sentence in sentences:
            say(console, sentence)

    tell(*words.plan(first))
    if plan and not (model or undefended or domain):
        document = documents.Reproduced(file=str(file), agrees=None, audit=None, sentences=said)
        end(context, console, document, first.command.replace("reproduce.json", quoted(file), 1))
        return
    if model is None or undefended is None or domain is None:
        fail(
            "--model, --undefended and --domain are needed; holdfast reproduce FILE --plan says what the first audit had"
        )
    if out is None and not plan:
        fail("--out is needed: the folder to write the new audit to")
    from holdfast.cli.options import check_device
    from holdfast.runs.reproduction import audit_again, known_runs, other_inputs, other_versions

    check_device("cpu" if executor != "local" else device or first.device)
    audit = audit_again(
        first, model=model, undefended=undefended, domain=domain, reference=reference, never_exposed=never_exposed,
        sibling=sibling, peers=tuple(peer or ()), device=device, ranks=ranks,
    )  # fmt: skip
    others = [words.other_input(o.kind, o.name, o.there, o.here) for o in other_inputs(first, audit)]
    tell(*words.versions(other_versions(first)))
    if others:
        fail(words.mismatch(others))
    tell(words.known(known_runs(first, audit), len(first.runs)))
    if plan or out is None:
        elsewhere = out or file.parent.with_name(f"{file.parent.resolve().name}-again")
        document = documents.Reproduced(file=str(file), agrees=None, audit=None, sentences=said)
        again = command_of(context, "plan", "as_json") + ("" if out else f" --out {quoted(elsewhere)}")
        end(context, console, document, again)
        return
    from holdfast.cli.display import show_jobs
    from holdfast.cli.say import check_cells, finish
    from holdfast.core.records import read_campaign
    from holdfast.stats.reproduction import compare
    from holdfast.stats.summary import summarise

    where = workers_of(
        executor, cluster, workers, out, ranks, audit.options.device, lambda: memory_of_worker(console, audit.planned())
    )
    title = f"Audit of {model_label(model)}, made again"
    with show_jobs(console, title) as on_progress:
        audit.run(out, where, title=title, suite=first.suite, command=command_of(context), on_progress=on_progress)
    audited = finish(console, out)
    made, results = read_campaign(out)
    outcome = compare(first, made, results, summarise(made, results))
    tell(*words.compared(outcome))
    document = documents.Reproduced(file=str(file), agrees=outcome.agrees, audit=audited, sentences=said)
    end(context, console, document, f"holdfast verify {quoted(out)}" if outcome.agrees else None)
    check_cells(out)
    if not outcome.agrees:
        raise typer.Exit(1)


def release(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that audit wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Write a starting release.toml into an audit's folder: what only a person can say of a release, all of it left open."""
    console = make_console()
    from holdfast.cli import documents
    from holdfast.core.files import only_writer, write_text
    from holdfast.core.records import CampaignPlan
    from holdfast.core.release import FILE, template

    labels, path = list(CampaignPlan.read(folder).models), folder / FILE
    with only_writer(path):
        if path.exists():
            fail(f"{path} is there already; edit it, or move it away")
        write_text(path, template(labels))
    say(console, f'{path} is to be filled in; what stays commented out is "not stated" in the report')
    command = f"holdfast report {quoted(folder)} --out {quoted(folder / 'report.html')}"
    end(context, console, documents.Written(path=str(path)), command)
