"""The order of models from several audits, as far as noise allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.stats.figures import CampaignSummary, Pair
from holdfast.stats.seeds import NOISE, Interval, spread


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model of one audit."""

    summary: CampaignSummary
    model: str

    @property
    def pairs(self) -> dict[str, Pair]:
        """The model's results by attack."""
        return {pair.attack: pair for pair in self.summary.pairs if pair.model == self.model}

    def by_seed(self, attacks: Sequence[str]) -> dict[int, float]:
        """The mean over attacks of each seed's hazard at the attack's best milestone."""
        pairs = self.pairs
        values: dict[int, dict[str, float]] = {}
        for cell in self.summary.cells:
            pair = pairs.get(cell.attack)
            if cell.model != self.model or cell.attack not in attacks or not cell.counts or pair is None:
                continue
            point = cell.at(pair.peak_step or 0)
            for seed in (cell.seed,) if cell.draws else self.summary.seeds:
                if point is not None:
                    values.setdefault(seed, {})[cell.attack] = point.value
        return {seed: sum(of.values()) / len(of) for seed, of in values.items() if len(of) == len(attacks)}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean hazard of one model minus another's, over the attacks they share."""

    mean: float
    interval: Interval | None
    """95 %; None with too few seeds"""
    tie: bool


def difference(one: Candidate, other: Candidate) -> Difference:
    """Compare two models of different audits.

    Seeds are paired and the questions' errors added as if independent, so a tie is called slightly too often.
    """
    pairs = one.pairs, other.pairs
    peaks = {
        name: (pair.peak, match.peak)
        for name, pair in pairs[0].items()
        if pair.peak and (match := pairs[1].get(name)) and match.peak
    }
    by_seed = one.by_seed(list(peaks)), other.by_seed(list(peaks))
    paired = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0] if seed in by_seed[1]]
    if not paired:
        return Difference(mean=0.0, interval=None, tie=True)
    errors = [sum(peak.question_stderr**2 for peak in of) / len(of) for of in zip(*peaks.values(), strict=True)]
    levels = [sum(peak.mean for peak in of) / len(of) for of in zip(*peaks.values(), strict=True)]
    gap, chance = spread(paired, sum(errors)), one.summary.hazard.chance
    interval = gap.interval()
    at_chance = chance is not None and all(
        abs(level - chance) <= NOISE * error**0.5 for level, error in zip(levels, errors, strict=True)
    )
    return Difference(
        mean=gap.mean, interval=interval, tie=interval is None or interval.low <= 0 <= interval.high or at_chance
    )


def ranks(candidates: Sequence[Candidate]) -> list[tuple[int, int]]:
    """The range of places of each model: from 1 + those that are better to all but those that are worse.

    The result is a range, since ties are not transitive.
    """
    places = []
    for one in candidates:
        better = worse = 0
        for other in candidates:
            if other is not one and not (gap := difference(one, other)).tie:
                worse += one.summary.hazard.sign * gap.mean < 0
                better += one.summary.hazard.sign * gap.mean > 0
        places.append((1 + better, len(candidates) - worse))
    return places
