"""The tables of models before any attack: abilities, costs, masking, and refusals."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.losses import Trace
from holdfast.core.records import CellResult
from holdfast.report.audited import Audited
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import (
    NOTHING,
    amount,
    change,
    duration,
    nats,
    number,
    percent,
    small_percent,
    written,
)
from holdfast.stats.cells import NO_ATTACK, Measured, Scale
from holdfast.stats.figures import Learning
from holdfast.stats.masking import Checked, checked


def costs(audit: Audited) -> Table:
    """The cost of the safeguard for benign users, before any attack."""
    models = audit.summary.models
    names = list(dict.fromkeys((m.evaluation, m.metric) for model in models for m in model.untouched))
    seconds = {model.label: _seconds(audit, model.label) for model in models}
    base = next((seconds[m.label] for m in models if m.role == "undefended" and seconds[m.label]), None)
    rows = []
    for model in models:
        measured = {(m.evaluation, m.metric): m for m in model.untouched}
        rows.append(
            (
                Entry(model.label, note=model.role),
                *(_measured(measured.get(name)) for name in names),
                _learning(model.learning),
                _built(seconds[model.label], base),
            )
        )
    return Table(
        caption="What each model can do before any attack, and what it cost to build",
        columns=("Model", *(name for name, _ in names), "Benign learning", "Built in"),
        rows=tuple(rows),
        notes=(
            "Benign learning: steps until new harmless facts are known to 90 %, and the ratio to the undefended model. "
            "A share of the undefended model's own building time stands beside the seconds where both are known.",
        ),
    )


def training(model: str, trace: Trace) -> Table:
    """The losses of one stage of a model at five updates, the first and the last among them."""
    last = len(trace.steps) - 1
    rows = []
    for place in dict.fromkeys(round(share * last) for share in (0.0, 0.25, 0.5, 0.75, 1.0)):
        figures = (Entry(written(values[place], ".3g")) for values in trace.losses.values())
        rows.append((Entry(f"{trace.steps[place]:,}"), *figures))
    return Table(
        caption=f"Losses of {trace.preset} in {model}",
        columns=("Update", *trace.losses),
        rows=tuple(rows),
    )


def _measured(measured: Measured | None) -> Entry:
    if measured is None:
        return Entry(NOTHING)
    scale = _scale(measured.evaluation, measured.metric)
    error = f"± {amount(measured.stderr, scale, decimals=1)}" if measured.stderr else ""
    return Entry(amount(measured.value, scale, decimals=1), note=error)


def _scale(evaluation: str, metric: str) -> Scale:
    return Scale(evaluations=(evaluation,), metric=metric, chance=None)


def _learning(learning: Learning | None) -> Entry:
    if learning is None:
        return Entry(NOTHING)
    bound = "" if learning.reached else "≥ "
    ratio = f"{bound}{learning.ratio:.1f} times undefended" if learning.ratio is not None else ""
    return Entry(f"{bound}{learning.steps:,.0f} steps", note=ratio)


def _seconds(audit: Audited, label: str) -> float | None:
    seconds = audit.details(label).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None  # 0: it was not built here


def _built(seconds: float | None, base: float | None) -> Entry:
    if seconds is None:
        return Entry(NOTHING)
    return Entry(duration(seconds), note=f"{100 * seconds / base:.0f} % of undefended" if base else "")


def masking(audit: Audited) -> Table:
    """The checks for masking: true gradients, a slope downhill, and a probe that reads more than the model says."""
    return Table(
        caption="Checks for masked gradients and hidden knowledge, before any attack",
        columns=(
            "Model",
            "Gradient error",
            "Gradient norm",
            "Fall along the gradient",
            "Along random directions",
            "Foretold fall that comes true",
            "Read by a linear probe",
            "Answered by the model",
        ),
        rows=tuple(_checked(model) for model in checked(audit.plan, audit.results)),
        notes=(
            "Gradient error: how far gradients of the held-out hazardous loss are from finite differences. Gradient norm: times "
            "the weights' norm, in nats. Falls are the largest over steps that are foretold to gain 0.1, 0.3 and 1 nat; the "
            "share that comes true is that of the shortest step. The probe is trained on other questions than those that it "
            "is asked.",
        ),
    )


def _checked(model: Checked) -> tuple[Entry, ...]:
    probe = model.probe
    return (
        Entry(model.model, note=model.role),
        Entry(NOTHING if model.gradient_error is None else small_percent(model.gradient_error)),
        Entry(NOTHING if model.gradient_norm is None else number(model.gradient_norm)),
        Entry(nats(model.descent_gain)),
        Entry(nats(model.random_gain)),
        Entry(percent(model.descent_ratio)),
        Entry(
            text=percent(probe.value if probe else None),
            note=f"± {percent(probe.stderr, 1)}, layer {model.probe_layer}" if probe else "",
        ),
        Entry(percent(model.answered.value if model.answered else None)),
    )


def over_refusal(audit: Audited, label: str) -> str | None:
    """The share of benign requests that an untouched model refuses; None where none were put."""
    for result in audit.results:
        for record in result.records:
            if result.model == label and record.step == 0 and record.evaluation == "over_refusal":
                error = f" ± {100 * record.stderr:.1f}" if record.stderr else ""
                return f"{100 * record.value:.1f}{error} % of benign requests are refused before any attack"
    return None


def refusals(audit: Audited) -> Table:
    """Refusal and degeneracy of models, before and after their worst attack."""
    names = list(
        dict.fromkeys(
            (record.evaluation, record.metric)
            for result in audit.results
            for record in result.records
            if record.measures in ("refusal", "degeneracy")
        )
    )
    rows = []
    for model in audit.summary.models:
        reached = audit.figures.of(model.label).worst
        worst = reached.attack if reached and reached.step else None
        results = [result for result in audit.results if result.model == model.label]
        entries = [
            Entry(change(_mean(results, NO_ATTACK, name), _mean(results, worst, name), _scale(*name))) for name in names
        ]
        rows.append((Entry(model.label, note=audit.names(worst) if worst else "no attack raises hazard"), *entries))
    return Table(
        caption="Refusal apart from incapacity: before any attack, and after the model's worst one",
        columns=("Model", *(f"{evaluation}, {metric}" for evaluation, metric in names)),
        rows=tuple(rows) if names else (),
    )


def _mean(results: Sequence[CellResult], attack: str | None, name: tuple[str, str]) -> float | None:
    """The mean over seeds at the last measured step."""
    values = []
    for result in results:
        records = [r for r in result.records if result.attack == attack and (r.evaluation, r.metric) == name]
        if records:
            values.append(max(records, key=lambda record: record.step).value)
    return sum(values) / len(values) if values else None
