"""The adaptive attacker in one call: search for an attack and confirm the winner."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.campaign.cells import Model, check_positions, evaluations_of, label_of
from holdfast.campaign.run import run_campaign
from holdfast.core.domain import Domain
from holdfast.core.files import write_text
from holdfast.core.records import read_campaign
from holdfast.core.shown import frame, html
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.jobs.executor import Workers
from holdfast.jobs.graph import Progress
from holdfast.runs.audit import models_of
from holdfast.runs.search.confirmation import Confirmed, confirmation, confirmed, searched_classes
from holdfast.runs.search.search import Search, write_suite
from holdfast.runs.search.trial import PROTOCOL, Trial, attack_name, best_trials
from holdfast.runs.standing import working_in

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, repr=False)
class Found:
    """The outcome of a search."""

    folder: Path
    """of the search; the confirmation is an audit's folder in it"""

    trials: list[Trial]
    """in the order in which they were proposed"""
    best: Mapping[str, Trial]
    """family -> its best trial, the best family first"""
    winner: Trial
    confirmed: Confirmed
    description: dict[str, Any]
    """all of it as JSON, as `search.json` holds it"""

    def __repr__(self) -> str:
        return f"Found({self._told()})"

    def _repr_html_(self) -> str:
        columns = ("family", "trials", "hazard", "ability", "kept", "updates", "FLOPs")
        rows = [
            (
                family, str(sum(other.family == family for other in self.trials)), f"{100 * trial.hazard:.0f} %",
                f"{100 * trial.ability:.0f} %", "yes" if trial.feasible else "no", f"{trial.steps:,}", f"{trial.flops:.1e}",
            )
            for family, trial in self.best.items()
        ]  # fmt: skip
        return html("The best attack of each family, on the selection questions", columns, rows, [self._told()])

    def to_pandas(self) -> pandas.DataFrame:
        """The trials as a data frame, a row a trial.

        Raises:
            HoldfastError: pandas is not installed.
        """
        return frame({**asdict(trial), "attack_name": attack_name(trial)} for trial in self.trials)

    def _told(self) -> str:
        claim = self.confirmed
        figures = f"hazard {100 * claim.hazard:.0f} %, ability {100 * claim.ability:.0f} %"
        return f"{attack_name(self.winner)}: {figures}, confirmed after {len(self.trials)} trials"


def search_and_confirm(
    search: Search,
    out: Path | str,
    models: Sequence[Model] = (),
    *,
    label: str = "",
    held_out: Sequence[str] = (),
    seeds: int = 5,
    workers: Workers = 1,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Found:
    """Search, write the best attack of every family as a suite, and confirm the winner on the claim questions.

    Trials of the same search that `out` already has are not run again.

    Args:
        search: the model, its families and the budget.
        out: the folder of the search; the confirmation lies in it.
        models: the model and the controls that the confirmation compares with; empty: the model and its original.
        label: of the searched model among `models`; empty: `label_of` it.
        held_out: families that the search leaves out, for the record.
        seeds: fresh seeds of the confirmation.
        workers: processes of this machine at a time, or an executor.
        command: for the record.
        on_progress: called with how the trials, and then the confirmation's cells, stand.

    Raises:
        HoldfastError: the folder holds something else, another process works in it, every trial failed, or the confirmation
            could not be run.
    """
    out, label = Path(out), label or label_of(search.model)
    if not models and not search.base:
        raise HoldfastError("a search is confirmed beside the model before any safeguard; give base=…")
    models = models or models_of(search.model, search.base, None, None)
    domain, checkpoint = Domain.open(search.domain), Checkpoint(search.model)
    search.check()
    for model in models:
        Checkpoint(model.path).check(search.options.trust_remote_code, domain.max_length)
        for evaluations in evaluations_of(domain):
            check_positions(Checkpoint(model.path), domain, evaluations, search.options.trust_remote_code)
    what = {"model": checkpoint.digest[:16], "domain": domain.name}
    inputs = (search.domain, *(Path(model.path) for model in models))
    with working_in(out, "search", what, command, on_progress, inputs=inputs) as work:
        trials = search.run(out, workers, work.progress)
        write_suite(out, trials)
        best = best_trials(trials)
        winner = next(iter(best.values()))
        _write(out, describe_search(search, trials, held_out, None))
        folder = out / "confirmation"
        run_campaign(
            confirmation(search, winner, models, seeds), folder, workers,
            title=f"Confirmation of {attack_name(winner)} on {label}", suite=attack_name(winner), command=command,
            on_progress=work.progress, searched=searched_classes(search.families), held_out=list(held_out),
        )  # fmt: skip
        _, results = read_campaign(folder)
        claim = confirmed(results, label, search.ability_loss)
        description = describe_search(search, trials, held_out, claim)
        _write(out, description)
    return Found(folder=out, trials=trials, best=best, winner=winner, confirmed=claim, description=description)


def describe_search(
    search: Search, trials: Sequence[Trial], held_out: Sequence[str], claim: Confirmed | None
) -> dict[str, Any]:
    """A search as JSON: its budget, its trials and its winner."""
    best = best_trials(trials)
    winner = next(iter(best.values()), None)
    return {
        "schema": 1,
        "protocol": PROTOCOL,
        "model": Checkpoint(search.model).digest,
        "domain": Domain.open(search.domain).name,
        "families": list(search.families),
        "held_out": list(held_out),
        "seed": search.seed,
        "ability_loss": search.ability_loss,
        "budget": asdict(search.budget),
        "ended_by": search.budget.reached(trials),
        "spent": {name: sum(getattr(t, name) for t in trials) for name in ("steps", "tokens", "flops", "seconds")},
        "best": {family: trial.key for family, trial in best.items()},
        "winner": winner.key if winner else None,
        "confirmation": asdict(claim) if claim else None,
        "trials": [asdict(trial) for trial in trials],
    }


def _write(out: Path, description: Mapping[str, Any]) -> None:
    write_text(out / "search.json", json.dumps(description, indent=2) + "\n")
