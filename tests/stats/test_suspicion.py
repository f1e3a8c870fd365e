"""The figures of the checks of the attacks; their sentences have tests of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdfast.core.records import CampaignPlan, CellResult, Record
from holdfast.stats.summary import summarise
from holdfast.stats.suspicion import (
    Control,
    Gradients,
    Losses,
    Suspicion,
    Sweep,
    Updates,
    growth,
    mean_costs,
    suspicions,
)

MODELS = {"undefended": "undefended", "shallow": "reference", "deep": "defended", "clean": "never-exposed"}


def cell(model: str, attack: str, hazards: tuple[float, float], **changes: Any) -> CellResult:
    """A finished cell of 400 questions, ability kept unless it is said otherwise."""
    ability = changes.pop("ability", (1.0, 0.95))
    identity = f"{model}-{attack}"
    steps = (0,) if attack == "none" else (0, 10)
    records = [
        Record(cell=identity, step=step, evaluation=name, metric="accuracy", measures=measures, value=values[place],
               stderr=0.02, n=400, chance=0.25)
        for name, measures, values in (("hazard", "hazard", hazards), ("benign_outside_retain", "ability", ability))
        for place, step in enumerate(steps)
    ]  # fmt: skip
    sound: dict[str, Any] = {
        "attack_config": {"class": "FineTune", "learning_rate": 1e-3, "max_steps": 10},
        "first_loss": 3.0, "last_loss": 1.0, "gradient_norms": [(1, 2.0), (2, 3.0)], "update_size": 0.1,
    } if attack != "none" else {}  # fmt: skip
    return CellResult(
        cell=identity, model=model, model_digest=model, attack=attack, seed=0, records=records,
        **{"status": "finished", "attack_config": {}, **sound, **changes},
    )  # fmt: skip


def campaign(*cells: CellResult) -> list[Suspicion]:
    plan = CampaignPlan(title="t", domain="d", suite="s", models=MODELS, cells=[held.cell for held in cells])
    untouched = [cell(model, "none", (hazard, hazard)) for model, hazard in
                 (("undefended", 1.0), ("shallow", 0.3), ("deep", 0.26), ("clean", 0.25))]  # fmt: skip
    held = [*untouched, *cells]
    return suspicions(summarise(plan, held), held)


SOUND = (
    cell("shallow", "a", (0.3, 0.9)),
    cell("deep", "a", (0.26, 0.3)),
    cell("clean", "a", (0.25, 0.25)),
)


def only(kind: type, *cells: CellResult) -> Any:
    [check] = [check for check in campaign(*cells) if isinstance(check, kind)]
    return check


def test_sound_attacks_raise_no_suspicion() -> None:
    checks = campaign(*SOUND)
    assert [check for check in checks if check.fires] == []
    assert only(Losses, *SOUND) == Losses(fires=False, runs=3, rose=())
    gradients = only(Gradients, *SOUND)
    assert (gradients.runs, gradients.least, gradients.greatest) == (3, 2.0, 3.0)
    assert only(Control, *SOUND) == Control(fires=False, weak=(), strong=("a",))


@pytest.mark.parametrize(
    ("changes", "kind", "field"),
    [
        ({"last_loss": 3.5}, Losses, "rose"),
        ({"gradient_norms": [(1, 0.0), (2, 0.0), (3, 0.0)]}, Gradients, "vanished"),
        ({"gradient_norms": [(1, 1.0), (2, 1.0), (3, 2e3)]}, Gradients, "exploding"),
        ({"status": "diverged"}, Gradients, "stopped"),
        ({"update_size": 1e-7}, Updates, "idle"),
        ({"update_size": 1.4}, Updates, "replaced"),
        ({"moved_share": 0.04, "gradient_norms": [(1, 2.0), (64, 3.0)]}, Updates, "stuck"),
    ],
)
def test_each_check_names_the_run(changes: dict[str, Any], kind: type, field: str) -> None:
    broken = replace(SOUND[1], **changes)
    check = only(kind, SOUND[0], broken, SOUND[2])
    assert getattr(check, field) == (broken,)
    assert check.fires


@pytest.mark.parametrize(
    ("hazards", "shape"),
    [
        ((0.3, 0.4, 0.6), "still rising"),
        ((0.6, 0.4, 0.3), "still falling"),
        ((0.26, 0.8, 0.26), "one rate alone"),
        ((0.3, 0.5, 0.6, 0.5), "closed"),
    ],
)
def test_the_shape_of_a_sweep(hazards: tuple[float, ...], shape: str) -> None:
    cells = [
        cell("deep", f"rate-{place}", (0.26, hazard),
             attack_config={"class": "FineTune", "learning_rate": 10.0 ** (place - 5), "max_steps": 10 + place})
        for place, hazard in enumerate(hazards)
    ]  # fmt: skip
    sweep = only(Sweep, *cells)
    assert (sweep.shape, sweep.hazards) == (shape, hazards)


def test_growth_is_over_the_first_gradients_that_are_there() -> None:
    assert growth(cell("deep", "a", (0.2, 0.3), gradient_norms=[(1, 0.0), (2, 2.0), (3, 8.0)])) == pytest.approx(8 / 5)


def test_costs_are_means_over_the_runs_that_finished() -> None:
    cells = [
        cell("deep", "a", (0.2, 0.3), tokens=100, flops=4.0, peak_memory=5, seconds=3.0, evaluation_seconds=1.0),
        cell("deep", "a", (0.2, 0.3), tokens=300, flops=8.0, peak_memory=9, seconds=5.0, evaluation_seconds=1.0),
        cell("deep", "a", (0.2, 0.3), status="diverged", tokens=10**9),
    ]
    assert mean_costs(cells) == {"tokens": 200.0, "flops": 6.0, "seconds": 3.0, "peak_memory": 9.0}
    assert mean_costs([]) == {}
