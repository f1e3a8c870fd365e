"""Fit safeguards to a model before they are trained: what each term of a loss pulls, what a step moves, and what to set.

For each safeguard, on the user's model and rows:

1. The gradient of every term is measured after the first update, for at the start every distance to the original model is zero.
2. Where the model has attention sinks, the settings that the safeguard keeps for such models take the place of its own.
3. Where the terms that take the hazard away pull far less or far more than those that keep the rest, their weights are scaled.
4. A dozen updates are tried. Where nothing moved, the rate is tripled; where the model broke, the rate becomes a third.

What a safeguard's terms are, which fields are their weights and its rate, the safeguard says itself (`Safeguard.terms`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.domain import Domain
from holdfast.core.options import Options
from holdfast.core.settings import with_values
from holdfast.core.types import NonFinite
from holdfast.engine.checkpoint import Checkpoint
from holdfast.safeguards.base import Safeguard, Term
from holdfast.stats.effect import LEAST_MOVE

if TYPE_CHECKING:
    from holdfast.engine.activations import Activations
    from holdfast.engine.data import Batch, Data
    from holdfast.engine.session import Session
    from holdfast.engine.walk import Steps

UPDATES = 12
"""that are tried at each rate"""

TRIALS = 4
"""rates that are tried of each safeguard, at most"""

FACTOR = 3.0
"""by which a rate is changed where nothing moved or the model broke"""

BALANCED = (0.02, 10.0)
"""the pull of the terms that take away, over that of the terms that keep, within which weights are left as they are. Of presets
that hide on the testbed the ratio was 0.06 (`random-mapping`) and 1.4 (`rmu`)."""

PULL = 0.3
"""that ratio, where weights are scaled: about the geometric mean of those that hid"""

BROKE = 0.5
"""nats that the loss on retain rows may rise by in the dozen updates"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One term of a loss, after the first update."""

    name: str
    setting: str
    weight: float
    keeps: bool
    loss: float
    gradient: float
    """norm of the term's gradient at weight 1, over the trained weights"""

    @property
    def pull(self) -> float:
        """The norm of the gradient times the weight."""
        return self.gradient * self.weight


@dataclass(frozen=True, kw_only=True)
class Change:
    """A loss on the same rows, before the first update and after the last."""

    name: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A few updates with some settings."""

    settings: Mapping[str, Any]
    """what differs from the preset, by dotted path"""
    rate: float | None
    """None: the safeguard has none"""
    updates: int
    first: float
    """size of the first update, relative to the norm of the weights that are trained"""
    all: float
    """the same, of all updates together"""
    losses: tuple[Change, ...]
    text: Change
    """the LM loss on retain rows, in nats; `before` is after the first update where that raised it, as a safeguard may that
    begins by damaging the weights"""
    moved: bool
    """whether a loss that takes away fell by 3 %"""
    broke: bool
    """whether the model lost the retain rows, or a loss became infinite"""

    @property
    def rank(self) -> tuple[bool, bool]:
        """The order of trials: greater is better."""
        return not self.broke, self.moved


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What was found out about one safeguard."""

    preset: str
    terms: tuple[Measured, ...]
    """as the preset has them"""
    adapted: tuple[Measured, ...]
    """with the settings for a model with sinks; the same where there are none"""
    trials: tuple[Trial, ...]
    proposed: Mapping[str, Any]
    """settings by dotted path; empty: the preset's own"""
    seconds: float

    @property
    def chosen(self) -> Trial:
        """The trial of what is proposed."""
        return next(trial for trial in self.trials if dict(trial.settings) == dict(self.proposed))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found out about a model and its safeguards."""

    layers: tuple[Activations, ...]
    safeguards: tuple[Calibrated, ...]

    @property
    def sinks(self) -> bool:
        """Whether a layer has attention sinks."""
        return any(layer.sinks for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """The model and the rows that safeguards are fitted to."""

    model: Checkpoint
    domain: Path
    base: Checkpoint | None = None
    """the model before any safeguard; None: the model itself"""
    seed: int = 0
    options: Options = field(default_factory=Options)

    def run(
        self, stages: Sequence[tuple[str, Safeguard]], on_trial: Callable[[str], None] = lambda name: None
    ) -> Calibration:
        """Fit every safeguard to the model as it is; `on_trial` is called as each trial begins.

        Raises:
            HoldfastError: rows are missing or malformed, or a safeguard does not fit the model.
        """
        from holdfast.engine.activations import activations

        session = self._session()
        layers = tuple(activations(session.model, self._rows(session.data)))
        calibration = Calibration(layers=layers, safeguards=())
        calibrated = [self._fit(name, safeguard, calibration.sinks, on_trial) for name, safeguard in stages]
        return Calibration(layers=layers, safeguards=tuple(calibrated))

    def _fit(self, name: str, preset: Safeguard, sinks: bool, on_trial: Callable[[str], None]) -> Calibrated:
        started = time.monotonic()
        settings = dict(preset.against_sinks()) if sinks else {}
        on_trial(f"{name}: the gradient of every term")
        terms, adapted = self._gradients(preset, fitted(preset, settings, name))
        settings |= balanced(adapted)
        trials = list[Trial]()
        for _ in range(TRIALS):
            safeguard = fitted(preset, settings, name)
            rate = getattr(safeguard, safeguard.rate_setting) if safeguard.rate_setting else None
            on_trial(f"{name}: {UPDATES} updates" + (f" at {rate:.2g}" if rate else ""))
            trials.append(self._try(safeguard, settings, rate))
            following = next_rate(trials)
            if following is None:
                break
            settings = {**settings, preset.rate_setting: following}
        best = max(trials, key=lambda trial: (trial.rank, trial.rate or 0.0))
        return Calibrated(
            preset=name,
            terms=terms,
            adapted=adapted,
            trials=tuple(trials),
            proposed=best.settings,
            seconds=time.monotonic() - started,
        )

    def _session(self, safeguard: Safeguard | None = None) -> Session[Data]:
        from holdfast.engine.session import open_session

        return open_session(
            self.model, Domain.open(self.domain), "defender", self.seed, self.options,
            prepare=[safeguard.prepare] if safeguard else [], base=self.base or self.model, initial=self.model,
        )  # fmt: skip

    def _rows(self, data: Data) -> Batch:
        return next(data.stream("retain", batch_size=8, seed=self.seed))

    def _terms(self, safeguard: Safeguard, session: Session[Data]) -> tuple[Term, ...]:
        """The terms at the session's model, with random numbers of their own."""
        from holdfast.engine.run import Run

        run = session.run
        return safeguard.terms(session.model, session.data, Run(self.seed, lambda: run.base, lambda: run.initial))

    def _gradients(self, preset: Safeguard, adapted: Safeguard) -> tuple[tuple[Measured, ...], tuple[Measured, ...]]:
        """The terms of a preset, and of the same with other settings, after the preset's first update."""
        from holdfast.engine.walk import walk

        found: list[tuple[Measured, ...]] = []

        def after_one(session: Session[Data], steps: Steps) -> Steps:
            for step, losses in steps:
                for safeguard in (preset, adapted) if adapted != preset else (preset,):
                    terms = self._terms(safeguard, session)
                    found.append(tuple(_measured(term, safeguard, session.model) for term in terms))
                yield step, losses
                return

        walk(self._session(preset), preset, after_one)
        return (found[0], found[-1]) if found else ((), ())

    def _try(self, safeguard: Safeguard, settings: Mapping[str, Any], rate: float | None) -> Trial:
        from holdfast.engine.walk import walk

        watching = _Watching(self, safeguard)
        broke = False
        try:
            walk(self._session(safeguard), safeguard, watching)
        except NonFinite:
            broke = True
        losses, text = watching.changes(), watching.text()
        gone = broke or text.after > text.before + BROKE
        return Trial(
            settings=dict(settings),
            rate=rate,
            updates=watching.updates,
            first=watching.sizes[0] if watching.sizes else math.nan,
            all=watching.sizes[-1] if watching.sizes else math.nan,
            losses=losses,
            text=text,
            moved=any(
                change.before - change.after >= LEAST_MOVE * abs(change.before)
                for change in losses
                if change.name in watching.taking
            ),
            broke=gone,
        )


def fitted(preset: Safeguard, settings: Mapping[str, Any], name: str) -> Safeguard:
    """The preset with settings by dotted path."""
    return with_values(preset, {tuple(path.split(".")): value for path, value in settings.items()}, name)


def balanced(terms: Sequence[Measured]) -> dict[str, float]:
    """Weights of the terms that take away, scaled so that they pull as much as those that keep; none where they do already."""
    taking = [term for term in terms if not term.keeps and term.pull]
    keeping = math.hypot(*(term.pull for term in terms if term.keeps))
    pull = math.hypot(*(term.pull for term in taking))
    if not keeping or not pull or BALANCED[0] <= pull / keeping <= BALANCED[1]:
        return {}
    return {term.setting: _rounded(term.weight * PULL * keeping / pull) for term in taking}


def next_rate(trials: Sequence[Trial]) -> float | None:
    """The rate to try next; None where the last trial is good, there is no rate, or the next rate was tried."""
    last = trials[-1]
    if last.rate is None or (last.moved and not last.broke):
        return None
    rate = _rounded(last.rate / FACTOR if last.broke else last.rate * FACTOR)
    return None if any(math.isclose(rate, trial.rate or 0.0, rel_tol=0.2) for trial in trials) else rate


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _measured(term: Term, safeguard: Safeguard, model: Any) -> Measured:
    loss, gradient = _taken(term, safeguard, model)
    return Measured(
        name=term.name, setting=term.setting, weight=term.weight, keeps=term.keeps, loss=loss, gradient=gradient
    )


def _taken(term: Term, safeguard: Safeguard, model: Any) -> tuple[float, float]:
    """The value of a term and the norm of its gradient over the weights that the safeguard trains."""
    import torch

    from holdfast.engine.sharded import GradientSum, clear_gradients, local

    gradients = GradientSum(model)
    gradients.clear()
    model.train()
    loss = term.take(gradients)
    gradients.give()
    parts = [local(weight.grad) for weight in safeguard.trained(model) if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(parts)) if parts else 0.0
    clear_gradients(model.parameters())
    model.train(False)
    return loss, norm


class _Watching:
    """The observer of a trial: the size of updates, every term on the same rows at both ends, and the loss on retain rows."""

    def __init__(self, calibrator: Calibrator, safeguard: Safeguard) -> None:
        self._calibrator, self._safeguard = calibrator, safeguard
        self.sizes: list[float] = []
        """of the weights' way so far, relative to their norm, after each update"""
        self.updates = 0
        self.taking: set[str] = set()
        self._terms: tuple[tuple[Term, float, float], ...] = ()
        self._texts: list[float] = []
        self._given: list[Mapping[str, float]] = []

    def __call__(self, session: Session[Data], steps: Steps) -> Steps:
        from holdfast.engine.sharded import Snapshot

        model, safeguard = session.model, self._safeguard
        terms = self._calibrator._terms(safeguard, session)
        self.taking = {term.name for term in terms if not term.keeps}
        before = [_taken(term, safeguard, model)[0] for term in terms]
        rows = self._calibrator._rows(session.data)
        self._texts = [_text(model, rows)]
        origin = Snapshot(model)
        norm = _norm(weight.detach() for weight in model.parameters())
        for step, losses in steps:
            self.updates = step
            self._given.append(dict(losses))
            self.sizes.append(_norm(origin.difference()) / norm)
            if step == 1:
                self._texts.append(_text(model, rows))
            if step == min(UPDATES, safeguard.outer_steps):
                after = [_taken(term, safeguard, model)[0] for term in terms]
                self._terms = tuple(zip(terms, before, after, strict=True))
                self._texts.append(_text(model, rows))
                yield step, losses
                return
            yield step, losses

    def changes(self) -> tuple[Change, ...]:
        """Every term at both ends; where the safeguard tells no terms, its own losses of the first and the last update."""
        if self._terms:
            return tuple(Change(name=term.name, before=one, after=two) for term, one, two in self._terms)
        if not self._given or self.taking:
            return ()
        first, last = self._given[0], self._given[-1]
        self.taking = set(first)
        return tuple(Change(name=name, before=first[name], after=last[name]) for name in first if name in last)

    def text(self) -> Change:
        """The LM loss on retain rows."""
        return Change(name="retain rows", before=max(self._texts[:2]), after=self._texts[-1])


def _text(model: Any, rows: Batch) -> float:
    import torch

    from holdfast.engine.losses import next_token_loss
    from holdfast.engine.predictions import predictions

    with torch.no_grad():
        logits = predictions(model, rows.input_ids)
    return float(next_token_loss(logits, rows.labels, rows.label_count))


def _norm(tensors: Any) -> float:
    import torch

    from holdfast.engine.sharded import local

    return float(torch.nn.utils.get_total_norm([local(tensor) for tensor in tensors]))
