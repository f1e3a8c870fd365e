"""The provenance of every number: runs, data, machines and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.core.records import CellResult
from holdfast.report.audited import Audited
from holdfast.report.render import Verbatim
from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import duration


def provenance(audit: Audited) -> Table:
    """The facts that the plan and the records hold, a line each."""
    plan, results = audit.plan, audit.results
    elsewhere = ("notes", "models", "environment", "data", *plan.models, *(("uses_base",) if audit.public else ()))
    facts = {
        "title": plan.title,
        "domain": plan.domain,
        "suite": plan.suite,
        "seeds": ", ".join(map(str, audit.summary.seeds)),
        "precision": ", ".join(sorted({str(r.identity["precision"]) for r in results if "precision" in r.identity})),
        "runs": f"{len(results)} ended of {len(plan.cells)} planned",
        "run time": duration(sum(result.seconds for result in results)),
        **{label: _flat({"role": role, **_facts(audit.details(label))}) for label, role in plan.models.items()},
        **_contents(results),
        **{key: _flat(value) for key, value in plan.details.items() if key not in elsewhere},
        **_digests(audit),
        **_environments(results),
    }
    return Table(
        caption="Provenance",
        columns=("What", "Value"),
        rows=tuple((Entry(key), Entry(Verbatim(value))) for key, value in facts.items() if value),
        look="facts",
    )


def _facts(details: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of one model, without the losses of its training, which are a chapter."""
    return {name: value for name, value in details.items() if name != "losses"}


def _contents(results: Sequence[CellResult]) -> dict[str, str]:
    """Hashes of the attacker's rows by role, and of the content of each evaluation."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        for role, content in result.identity.get("data", {}).items():
            seen.setdefault(f"data: {role}", {})[str(content)] = None
        for name, evaluation in result.identity.get("evaluations", {}).items():
            if isinstance(evaluation, list) and len(evaluation) == 2:
                seen.setdefault(f"asked by {name}", {})[str(evaluation[1])] = None
    return {name: ", ".join(values) for name, values in sorted(seen.items())}


def _digests(audit: Audited) -> dict[str, str]:
    """The measured weights that differ from those that the plan names."""
    seen: dict[str, dict[str, None]] = {}
    for result in audit.results:
        if result.model_digest != audit.details(result.model).get("digest"):
            seen.setdefault(f"weights of {result.model}", {})[result.model_digest] = None
    return {name: ", ".join(values) for name, values in seen.items()}


def _environments(results: Sequence[CellResult]) -> dict[str, str]:
    """Versions and hardware, each once; several values mean that runs were made in several places."""
    seen: dict[str, dict[str, None]] = {}
    for result in results:
        for key, value in result.environment.items():
            seen.setdefault(f"environment: {key}", {})[_flat(value)] = None
    return {name: " | ".join(values) for name, values in seen.items()}


def _flat(value: Any) -> str:
    """Nested provenance on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_flat(inner)}" for key, inner in value.items() if inner not in (None, "", []))
    if isinstance(value, list | tuple):
        return ", ".join(_flat(inner) for inner in value)
    return str(value)
