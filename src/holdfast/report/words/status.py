"""The standing of a run and the power of a planned audit, as tables and sentences for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.report.table import Entry, Table
from holdfast.report.words.numbers import count, duration, flops, number
from holdfast.stats.power import SEED_SPREAD, Detectable
from holdfast.stats.progress import Progress
from holdfast.stats.seeds import Interval


def status_table(progress: Progress) -> Table:
    """The runs of each model that have ended, by how they ended."""
    return Table(
        caption=progress.title,
        columns=("model", "finished", "diverged", "failed"),
        rows=tuple(
            (Entry(label), *(Entry(str(number)) for number in (of.finished, of.diverged, of.failed)))
            for label, of in progress.models.items()
        ),
    )


def status(progress: Progress, *, running: bool) -> list[str]:
    """The sentences on how a campaign stands: runs ended, work left, and the first reasons why runs failed.

    Args:
        progress: of the campaign.
        running: whether a holdfast works in its folder.
    """
    ended = progress.all.finished + progress.all.diverged
    text = f"{ended} of {count(progress.all.planned, 'run')} ended, in {duration(progress.seconds)} of work"
    if progress.all.left and progress.seconds_left is not None:
        text += f"; about {duration(progress.seconds_left)} of work left, divided by the processes"
    text += f". {'A holdfast is running there.' if running else 'None is running there.'}"
    return [text, *(f"Failed: {reason}" for reason in progress.reasons[:3])]


def standing(
    what: str,
    done: int,
    waiting: int,
    running: Sequence[str],
    failed: Sequence[str],
    seconds: float,
    seconds_left: float | None,
    *,
    working: bool,
) -> list[str]:
    """The sentences on how a run of jobs stands: jobs ended, jobs running, and the first reasons why jobs failed.

    Args:
        what: the run and where it is, as the beginning of a sentence.
        done: jobs that have ended.
        waiting: jobs that have not begun.
        running: names of the jobs that run.
        failed: one sentence for each job that failed.
        seconds: spent so far.
        seconds_left: the estimate; None: there is no ground for one.
        working: whether a holdfast works in its folder.
    """
    left = f"; about {duration(seconds_left)} left" if seconds_left else ""
    ended = f"{count(done, 'job')} ended, {waiting + len(running)} to go, {duration(seconds)} so far{left}."
    return [
        f"{what}: {ended} {'A holdfast is running there.' if working else 'None is running there.'}",
        *(f"Running: {name}" for name in running),
        *(f"Failed: {reason}" for reason in failed[:3]),
    ]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An audit with a number of seeds, before it is run."""

    seeds: int
    runs: int
    detectable: Detectable | None
    """None: too few seeds, or no hazard questions"""
    seconds: float
    flops: float
    tokens: float


def plan_table(plans: Sequence[Planned]) -> Table:
    """The power and the cost of the audit with more or fewer seeds."""
    return Table(
        caption="The audit by its number of seeds",
        columns=("seeds", "runs", "detectable, one attack", "detectable, whole suite", "time", "FLOPs", "tokens"),
        rows=tuple(tuple(Entry(text) for text in _planned(plan)) for plan in plans),
    )


def _planned(plan: Planned) -> tuple[str, ...]:
    distance = plan.detectable
    points = (
        (f"{100 * distance.one:.0f} points", f"{100 * distance.suite:.0f} points") if distance else ("no interval",) * 2
    )
    return (
        str(plan.seeds), str(plan.runs), *points, duration(plan.seconds), number(plan.flops), number(plan.tokens),
    )  # fmt: skip


def power(detectable: Detectable | None, questions: int, seeds: int, attacks: int) -> str:
    """The sentence on the power of the audit's questions and seeds; empty where hazard is not measured by questions."""
    if not questions:
        return ""
    if detectable is None:
        return (
            f"{seeds} seeds are too few for an interval, so no verdict but undecided could be given; 5 are the fewest."
        )
    one, suite, alone = (
        round(100 * value, 1) for value in (detectable.one, detectable.suite, detectable.from_questions)
    )
    return (
        f"With {questions} hazard questions and {seeds} seeds a true distance of {one:.0f} points from the threshold (about "
        f"{100 * detectable.threshold:.0f} %) is found in about 80 of 100 audits, and one of {suite:.0f} points above it by any "
        f"of {attacks} attacks after Holm's correction. The questions alone leave a standard error of {alone} points, which more "
        f"seeds do not lower. Hazard is taken to vary by {100 * SEED_SPREAD:.0f} points over seeds."
    )


def timing(measuring: float, workers: int) -> str:
    """The sentence on how the plan was timed; `measuring` is the share of the work outside attacks."""
    return (
        f"Timed on this machine for {workers} processes; {100 * measuring:.0f} % of the work is measuring. Each process holds "
        "one model in training."
    )


def attack_cost(updates: int, costs: dict[str, float]) -> str:
    """The sentence on the cost of an attack, from `stats.suspicion.mean_costs`."""
    parts = [f"{updates:,} updates"]
    if "tokens" in costs:
        parts += [f"{costs['tokens']:,.0f} tokens", f"{flops(costs['flops'])}"]
    if "peak_memory" in costs:
        parts += [f"{costs['peak_memory'] / 1e9:.2g} GB at the peak", duration(costs["seconds"])]
    return f"The attack took {', '.join(parts)}, measuring left out."


def confirmed(
    attack: str,
    selection: float,
    hazard: float,
    interval: Interval | None,
    step: int,
    ability_before: float,
    ability: float,
    *,
    seeds: int | None,
    failed: int,
    kept: bool,
) -> str:
    """The sentence on a confirmed search: its hazard on the selection and on the claim questions, and its ability.

    Args:
        attack: its name.
        selection: hazard on the selection questions, as a fraction; likewise the other figures.
        hazard: on the claim questions, at the milestone of the greatest mean over seeds.
        interval: of `hazard`.
        step: that milestone.
        ability_before: on questions that the search did not ask.
        ability: the same at the milestone.
        seeds: fresh seeds of the confirmation; None: the attack draws nothing.
        failed: runs that did not finish.
        kept: whether ability was within the loss that was allowed.
    """
    bounds = f", 95 % interval {100 * interval.low:.0f} to {100 * interval.high:.0f}" if interval else ""
    runs = "in one run, for it draws nothing" if seeds is None else f"with {seeds} fresh seeds"
    text = (
        f"{attack}: {100 * selection:.0f} % of the hazard on the selection questions; confirmed on the claim questions "
        f"{runs}: {100 * hazard:.0f} % after step {step:,}{bounds}. Ability there, on questions that the search did not ask: "
        f"{100 * ability:.0f} %, from {100 * ability_before:.0f} % before."
    )
    if failed:
        text += f" {failed} runs of the confirmation did not finish."
    return text if kept else f"{text} That is more ability than the attack might cost."
