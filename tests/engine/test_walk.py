"""The walk: who sees an update when, what ends it, and what survives a kill."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from holdfast.attacks.finetune import FineTune
from holdfast.core.stopping import Stopped, listening
from holdfast.core.types import NonFinite
from holdfast.engine.data import Data
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.session import Session
from holdfast.engine.walk import LastLosses, Reporting, Resumable, Steps, Untouched, drive, walk
from tests.attacks.walk import fresh, weights
from tests.conftest import SmallTestbed


class Killed(Exception):
    """The process dies here."""


@dataclass(frozen=True)
class Yields:
    """A plug-in that changes nothing and says so many losses."""

    losses: Sequence[float]

    def steps(self, model: Any, data: Any, run: Run) -> Iterator[float]:
        yield from self.losses[run.start :]


class Kept:
    """An observer that keeps what it sees, and may die."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.steps: list[tuple[int, Any]] = []
        self.killed_at = killed_at

    def __call__(self, session: Session[Any], steps: Steps) -> Steps:
        for step, losses in steps:
            self.steps.append((step, losses))
            if step == self.killed_at:
                raise Killed
            yield step, losses


def on(model: Any, run: Run, data: Any = None) -> Session[Any]:
    return Session(model=model, tokenizer=None, data=data, run=run)  # type: ignore[arg-type]


@pytest.fixture
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)


def test_the_first_observer_stands_closest_and_every_one_sees_every_update() -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        def observe(session: Session[Any], steps: Steps) -> Steps:
            seen.append(f"{name} begins")
            for step, losses in steps:
                seen.append(f"{name} {step}")
                yield step, losses

        return observe

    walk(on(None, Run(0)), Yields([1.0, 2.0]), named("inner"), named("outer"))
    assert seen == ["outer begins", "inner begins", "inner 1", "outer 1", "inner 2", "outer 2"]


def test_an_observer_that_ends_ends_the_walk_and_the_plug_in_is_closed() -> None:
    closed: list[bool] = []

    class Endless:
        def steps(self, model: Any, data: Any, run: Run) -> Iterator[float]:
            try:
                while True:
                    yield 1.0
            finally:
                closed.append(True)

    def three(session: Session[Any], steps: Steps) -> Steps:
        for step, losses in steps:
            yield step, losses
            if step == 3:
                return

    inner, outer = Kept(), Kept()
    walk(on(None, Run(0)), Endless(), inner, three, outer)
    assert [step for step, _ in inner.steps] == [step for step, _ in outer.steps] == [1, 2, 3]
    assert closed == [True]


def test_an_untouched_model_is_seen_and_not_updated() -> None:
    kept = Kept()
    walk(on(None, Run(0)), Untouched(), kept)
    assert kept.steps == []


def test_reports_count_from_where_a_resumed_run_goes_on() -> None:
    run, reports, last = Run(0), list[tuple[int, int]](), LastLosses()
    run.start = 1
    walk(on(None, run), Yields([1.0, 2.0, 3.0]), last, Reporting(on_step=lambda *now: reports.append(now), total=3))
    assert reports == [(2, 3), (3, 3)]
    assert last.losses == 3.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(bad: float) -> None:
    run = Run(0)
    run.start = 3
    walked = drive(iter([1.0, bad]), run)
    assert next(walked) == (4, 1.0)
    with pytest.raises(NonFinite, match=r"loss became -?(nan|inf) at step 5"):
        next(walked)


def test_of_several_losses_the_error_names_the_one() -> None:
    with pytest.raises(NonFinite, match="the retain loss became nan at step 1"):
        list(drive(iter([{"tamper-resistance loss": 1.0, "retain loss": math.nan}]), Run(0)))


def test_a_diverged_step_is_not_saved(tmp_path: Path, saving_often: None) -> None:
    with pytest.raises(NonFinite):
        walk(on(nn.Linear(1, 1), Run(0)), Yields([math.nan]), Resumable(path=tmp_path / "run", key="k"))
    assert not list(tmp_path.iterdir())


BASE = FineTune(batch_size=4, max_steps=6)
LORA = replace(BASE, lora_rank=2, lora_alpha=4.0, learning_rate=5e-3)
RESUMED: dict[str, tuple[FineTune, bool]] = {
    "adamw": (BASE, False),
    "cosine": (replace(BASE, schedule="warmup-cosine", warmup_steps=2), False),
    "sgd-momentum": (replace(BASE, optimizer="sgd-momentum", learning_rate=0.1), False),
    "schedule-free": (replace(BASE, optimizer="schedule-free-adamw"), False),
    "coin flip": (replace(BASE, benign_flip=0.5), False),
    "mixed": (replace(BASE, benign_share=0.5), False),
    "retain then forget": (replace(BASE, benign_first=0.4), False),
    "low rank over plain weights": (LORA, False),
    "low rank, schedule-free, clipped": (replace(LORA, optimizer="schedule-free-adamw", max_grad_norm=0.1), False),
    "low rank by peft, with dropout": (replace(LORA, lora_dropout=0.3), True),
}


def begin(attack: FineTune, prepared: bool, testbed: SmallTestbed) -> Session[Data]:
    seed_everything(9)
    model, data = fresh(testbed)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    if prepared:
        attack.prepare(model)
    return on(model, Run(9), data)


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_to_the_same_weights(
    name: str, tiny_testbed: SmallTestbed, tmp_path: Path, saving_often: None
) -> None:
    attack, prepared = RESUMED[name]
    undisturbed, whole = Kept(), begin(attack, prepared, tiny_testbed)
    walk(whole, attack, undisturbed)

    resumable = Resumable(path=tmp_path / "run", key="k")
    with pytest.raises(Killed):
        walk(begin(attack, prepared, tiny_testbed), attack, Kept(killed_at=4), resumable)

    again, resumed = Kept(), begin(attack, prepared, tiny_testbed)
    walk(resumed, attack, again, resumable)
    assert again.steps == undisturbed.steps[3:]  # the fourth was not saved: an observer was not done with it
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_saving_now_and_then_changes_nothing(tiny_testbed: SmallTestbed, tmp_path: Path, saving_often: None) -> None:
    paths = []
    for observers in ((), (Resumable(path=tmp_path / "run", key="k"),)):
        session = begin(BASE, False, tiny_testbed)
        walk(session, BASE, *observers)
        paths.append(weights(session.model))
    assert torch.equal(*paths)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("cost", "saved"), [(0.5, [30, 60, 90]), (3.0, [30, 180, 330]), (6.0, [30, 330])])
def test_a_state_that_takes_long_to_write_is_written_less_often(
    cost: float, saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a fiftieth of a run goes into writing; every update takes a second here."""
    now, states = 0.0, list[int]()
    monkeypatch.setattr("holdfast.engine.walk.time.monotonic", lambda: now)

    class Slow(Run):
        def save(self, path: Path, model: nn.Module, step: int, key: str) -> None:
            nonlocal now
            now += cost
            states.append(step)

    def ticking(session: Session[Any], steps: Steps) -> Steps:
        nonlocal now
        for step, losses in steps:
            now += 1.0
            yield step, losses

    walk(on(nn.Linear(1, 1), Slow(0)), Yields([1.0] * 400), ticking, Resumable(path=tmp_path / "run", key="k"))
    assert states[: len(saved)] == saved


def test_a_run_that_the_system_stops_is_saved_after_the_running_update_and_goes_on(tmp_path: Path) -> None:
    class Asked(Kept):
        """The system's signal comes in the second update."""

        def __call__(self, session: Session[Any], steps: Steps) -> Steps:
            for step, losses in super().__call__(session, steps):
                if step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield step, losses

    seen, resumable = Asked(), Resumable(path=tmp_path / "run", key="k")
    with pytest.raises(Stopped), listening():
        walk(on(nn.Linear(1, 1), Run(0)), Yields([1.0, 2.0, 3.0]), seen, resumable)
    assert seen.steps == [(1, 1.0), (2, 2.0)]
    rest = Kept()
    walk(on(nn.Linear(1, 1), Run(0)), Yields([1.0, 2.0, 3.0]), rest, resumable)
    assert rest.steps == [(3, 3.0)]
