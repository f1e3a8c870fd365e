"""What there is, as `holdfast list --json` prints it."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.cli import documents
    from holdfast.core.types import HoldfastError

KINDS = {"safeguards": "holdfast.safeguards", "attacks": "holdfast.attacks", "evaluations": "holdfast.evals"}
"""what `list` calls a kind of plug-in -> the package with its presets"""


def listing(what: str | None) -> documents.Listing | documents.Presets:
    """Everything, one kind, or the presets of one name.

    Args:
        what: a kind, "suites", the name of a preset, or None for everything.

    Raises:
        HoldfastError: there is nothing of that name.
    """
    from holdfast.cli import documents
    from holdfast.core.presets import collect, families
    from holdfast.runs.suites import suites

    if what is not None and what not in ("suites", *KINDS):
        found = [presets[what] for presets in map(collect, KINDS.values()) if what in presets]
        if not found:
            raise unknown(what)
        return documents.Presets(presets=[_preset(what, preset) for preset in found])

    def of(kind: str) -> list[documents.FamilyLine] | None:
        if what not in (None, kind):
            return None
        return [documents.FamilyLine(about=about, presets=names) for about, names in families(KINDS[kind]).items()]

    lines = [
        documents.SuiteLine(
            name=name,
            version=suite.version,
            about=suite.about,
            canonical=suite.canonical or suite.attacks[0],
            attacks=list(suite.attacks),
        )
        for name, suite in suites().items()
    ]
    return documents.Listing(
        safeguards=of("safeguards"),
        attacks=of("attacks"),
        evaluations=of("evaluations"),
        suites=lines if what in (None, "suites") else None,
    )


def unknown(what: str) -> HoldfastError:
    """The error where there is nothing of that name."""
    from holdfast.core.domain import nearest
    from holdfast.core.presets import collect
    from holdfast.core.reading import excerpt
    from holdfast.core.types import HoldfastError

    known = [*KINDS, "suites", *(name for package in KINDS.values() for name in collect(package))]
    return HoldfastError(f"there is nothing named {excerpt(what)} to list; {nearest(what, known)}")


def _preset(name: str, preset: Any) -> documents.PresetLine:
    from holdfast.cli import documents
    from holdfast.core.presets import describe, fields

    values = describe(preset)
    return documents.PresetLine(
        name=name,
        plugin=type(preset).__name__,
        about=cleandoc(type(preset).__doc__ or ""),
        fields=[
            documents.FieldLine(
                name=field.name, type=field.type, value=values.get(field.name, field.value), meaning=field.doc
            )
            for field in fields(preset)
        ],
    )
