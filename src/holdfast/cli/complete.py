"""What a shell proposes for a word that is half typed: names of presets, suites, families and studies. No torch."""

from __future__ import annotations

from collections.abc import Iterable


def attacks(incomplete: str) -> list[str]:
    """Presets of attacks."""
    return _presets(incomplete, "attacks")


def stages(incomplete: str) -> list[str]:
    """Presets of safeguards."""
    return _presets(incomplete, "safeguards")


def suites(incomplete: str) -> list[str]:
    """Suites of attacks."""
    from holdfast.runs import suites as room

    return _beginning(incomplete, room.suites())


def listed(incomplete: str) -> list[str]:
    """Whatever `holdfast list` shows."""
    kinds = ("attacks", "evaluations", "safeguards", "suites")
    return [*_beginning(incomplete, kinds), *_presets(incomplete, "attacks", "safeguards", "evals")]


def families(incomplete: str) -> list[str]:
    """Families of attack to search, a list with commas."""
    from holdfast.attacks.space import collect_families

    return _after_commas(incomplete, collect_families())


def studies(incomplete: str) -> list[str]:
    """Studies."""
    from holdfast.recipes.names import STUDIES

    return _beginning(incomplete, STUDIES)


def verdicts(incomplete: str) -> list[str]:
    """Verdicts, a list with commas."""
    from typing import get_args

    from holdfast.stats.figures import Verdict

    return _after_commas(incomplete, (verdict.replace(" ", "-") for verdict in get_args(Verdict)))


def precisions(incomplete: str) -> list[str]:
    """How a model is computed."""
    from typing import get_args

    from holdfast.core.types import Precision

    return _beginning(incomplete, get_args(Precision))


def matmuls(incomplete: str) -> list[str]:
    """Libraries of matrix products."""
    from typing import get_args

    from holdfast.core.types import Matmul

    return _beginning(incomplete, get_args(Matmul))


def number_types(incomplete: str) -> list[str]:
    """Types of stored weights."""
    from typing import get_args

    from holdfast.core.types import NumberType

    return _beginning(incomplete, get_args(NumberType))


def settings(incomplete: str) -> list[str]:
    """A preset and a path to one of its fields, as `--set` takes them."""
    from holdfast.core.presets import collect, leaves

    presets = {**collect("holdfast.attacks"), **collect("holdfast.safeguards")}
    name = max((name for name in presets if incomplete.startswith(f"{name}.")), key=len, default=None)
    if name is None:
        return _beginning(incomplete, (f"{preset}." for preset in presets))
    return _beginning(incomplete, (f"{name}.{'.'.join(path)}=" for path in leaves(presets[name])))


def _presets(incomplete: str, *rooms: str) -> list[str]:
    from holdfast.core.presets import collect

    return _beginning(incomplete, (name for room in rooms for name in collect(f"holdfast.{room}")))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _after_commas(incomplete: str, names: Iterable[str]) -> list[str]:
    given, comma, last = incomplete.rpartition(",")
    return [f"{given}{comma}{name}" for name in _beginning(last, names) if name not in given.split(",")]
