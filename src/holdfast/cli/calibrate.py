"""The verb that fits safeguards to a model before they are trained."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from holdfast.cli import complete
from holdfast.cli.answer import JsonOption, end
from holdfast.cli.options import (
    DeviceOption,
    DomainOption,
    ModelOption,
    PluginsOption,
    PrecisionOption,
    RemoteCodeOption,
    SeedOption,
    SetOption,
    ThreadsOption,
    run_options,
    stages_of,
    start_torch,
)
from holdfast.cli.say import print_table
from holdfast.cli.terminal import fail, make_console, quoted, say
from holdfast.core.outside import load_plugins

if TYPE_CHECKING:
    from rich.console import Console

    from holdfast.report.table import Entry, Table
    from holdfast.runs.calibrate import Calibrated, Calibration, Measured, Trial

_TOML = re.compile(rb"^# Made by holdfast calibrate", re.MULTILINE)


def calibrate(
    context: typer.Context,
    stages: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE…", autocompletion=complete.stages, help="Safeguard presets, or a TOML file of stages."
        ),
    ],
    model: ModelOption,
    domain: DomainOption,
    out: Annotated[Path, typer.Option("--out", help="TOML file of stages to write, for `holdfast safeguard`.")] = Path(
        "calibrated.toml"
    ),
    base: Annotated[
        Optional[str], typer.Option("--base", help="The original model, where MODEL has safeguards already.")
    ] = None,
    seed: SeedOption = 0,
    settings: SetOption = None,
    plugins: PluginsOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    threads: ThreadsOption = 1,
    trust_remote_code: RemoteCodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit safeguards to a model: measure what each term of a loss pulls, try a dozen updates, propose weights and a rate."""
    console = make_console()
    load_plugins(*plugins or ())
    start_torch(threads, device, precision)
    from holdfast.cli import documents
    from holdfast.core.domain import Domain
    from holdfast.core.files import only_writer, write_text
    from holdfast.core.outputs import claim_file
    from holdfast.core.presets import preset_of
    from holdfast.core.settings import stages_toml
    from holdfast.engine.checkpoint import Checkpoint
    from holdfast.runs.calibrate import Calibrator, fitted

    if out.suffix != ".toml":
        fail(f"the stages go into a TOML file; give --out a name that ends in .toml, not {out.name}")
    claim_file(out, _TOML)
    chosen = stages_of(stages, settings)
    checkpoint = Checkpoint(model)
    checkpoint.check(trust_remote_code, Domain.open(domain).max_length)
    calibrator = Calibrator(
        model=checkpoint,
        domain=domain,
        base=Checkpoint(base) if base else None,
        seed=seed,
        options=run_options(device, precision, trust_remote_code),
    )
    calibration = calibrator.run(chosen, lambda name: say(console, f"{name} …", "dim"))
    say(console, _sinks(calibration))
    for found in calibration.safeguards:
        _show(console, found)
    presets = dict(chosen)
    proposed = [
        (preset_of(found.preset), fitted(presets[found.preset], found.proposed, found.preset))
        for found in calibration.safeguards
    ]
    with only_writer(out):
        write_text(out, f"# Made by holdfast calibrate for {json.dumps(checkpoint.digest)}.\n\n{stages_toml(proposed)}")
    say(console, f"The proposed stages are in {out}")
    end(
        context,
        console,
        documents.Calibrated(file=str(out), **_figures(calibration)),
        f"holdfast safeguard {quoted(out)} --model {quoted(model)} --domain {quoted(domain)} "
        f"--out {quoted(f'{out.with_suffix(str())}-model')}",
    )


def _sinks(calibration: Calibration) -> str:
    """The sentence on attention sinks."""
    longest = max(calibration.layers, key=lambda layer: layer.ratio)
    state = f"the longest hidden state is {longest.longest:,.0f} long, {longest.ratio:.1f} times the median"
    if not calibration.sinks:
        return f"No token is an attention sink: {state}, after layer {longest.layer}."
    layers = [layer for layer in calibration.layers if layer.sinks]
    first = sum(0 in layer.positions for layer in layers)
    which = "the first token of a text" if first == len(layers) else f"tokens at places {_places(longest.positions)}"
    return (
        f"Attention sinks after layers {layers[0].layer} to {layers[-1].layer} of {len(calibration.layers) - 1}: mostly "
        f"{which}; after layer {longest.layer} {state}. A raw distance of hidden states is nearly all about them."
    )


def _places(positions: tuple[int, ...]) -> str:
    return ", ".join(map(str, positions))


def _show(console: Console, found: Calibrated) -> None:
    """Print the terms, the trials and what is proposed."""
    say(console, "")
    if found.terms:
        say(console, f"{found.preset}: the terms after the first update", "bold")
        print_table(console, _terms(found.terms))
    if found.adapted != found.terms:
        say(console, f"{found.preset}, with the settings for a model with sinks", "bold")
        print_table(console, _terms(found.adapted))
    say(console, f"{found.preset}: {found.trials[0].updates} updates", "bold")
    print_table(console, _trials(found))
    chosen = found.chosen
    losses = ", ".join(f"{loss.name} {loss.before:.3g} → {loss.after:.3g}" for loss in chosen.losses)
    say(console, f"On the same rows before and after: {losses}." if losses else "The safeguard gave no loss.")
    proposed = ", ".join(f"{path} = {value}" for path, value in found.proposed.items())
    say(console, f"Proposed: {proposed or 'the settings as they are'} ({found.seconds / 60:.1f} min).")
    if chosen.broke:
        say(
            console,
            "No rate that was tried left the model whole. Lower the rate or the weights with --set and calibrate again.",
        )
    elif not chosen.moved:
        say(
            console,
            "Nothing moved at any rate that was tried. Take another preset, or give rates and weights with --set.",
        )


def _terms(terms: tuple[Measured, ...]) -> Table:
    whole = sum(term.pull for term in terms) or 1.0
    return _table(
        ("Term", "weight", "loss", "gradient", "weight × gradient", "share"),
        [
            (
                term.name, f"{term.weight:.3g}", f"{term.loss:.3g}", f"{term.gradient:.3g}", f"{term.pull:.3g}",
                f"{100 * term.pull / whole:.0f} %",
            )
            for term in terms
        ],
    )  # fmt: skip


def _trials(found: Calibrated) -> Table:
    return _table(
        ("Rate", "one update moves", "all move", "retain rows, nats", "result"),
        [
            (
                "none" if trial.rate is None else f"{trial.rate:.2g}",
                f"{100 * trial.first:.2g} %",
                f"{100 * trial.all:.2g} %",
                f"{trial.text.before:.2f} → {trial.text.after:.2f}",
                _verdict(trial),
            )
            for trial in found.trials
        ],
    )


def _verdict(trial: Trial) -> str:
    return "broke the model" if trial.broke else "moved" if trial.moved else "nothing moved"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    from holdfast.report.table import Entry, Table

    def entries(row: tuple[str, ...]) -> tuple[Entry, ...]:
        return tuple(map(Entry, row))

    return Table(caption="", columns=columns, rows=tuple(map(entries, rows)))


def _figures(calibration: Calibration) -> dict[str, Any]:
    """All figures as plain values."""
    plain = asdict(calibration)
    for found, safeguard in zip(plain["safeguards"], calibration.safeguards, strict=True):
        for name in ("terms", "adapted"):
            for term, measured in zip(found[name], getattr(safeguard, name), strict=True):
                term["pull"] = measured.pull
    return {"layers": list(plain["layers"]), "safeguards": list(plain["safeguards"])}
