"""Numbers as a reader reads them: a share, a loss, a cost, a time, an interval, a factor."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.stats.audit import BreachCost, Leverage
from holdfast.stats.cells import Scale
from holdfast.stats.frontier import Unit
from holdfast.stats.recovery import Breach
from holdfast.stats.seeds import Estimate, Interval
from holdfast.stats.work_factor import WorkFactor

NOTHING = "\N{EN DASH}"
"""what stands where there is no figure"""
TOO_FEW = "too few seeds for an interval"


def written(value: float | None, form: str) -> str:
    """Write a number by a format specification, with a true minus and no negative zero; None is a dash."""
    if value is None:
        return NOTHING
    text = f"{value:{form}}".replace("-", "\N{MINUS SIGN}")
    return text.removeprefix("\N{MINUS SIGN}") if not text.strip("\N{MINUS SIGN}0.") else text


def amount(value: float | None, scale: Scale, *, decimals: int = 0) -> str:
    """A value on its scale: percent, or nats with two decimals."""
    if value is None:
        return NOTHING
    return nats(value) if scale.metric == "nats" else percent(value, decimals)


def percent(value: float | None, decimals: int = 0) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{written(100 * value, f'.{decimals}f')} %"


def small_percent(value: float) -> str:
    """A share that may be tiny."""
    if value < 1e-5:
        return "under 0.001 %"
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1g} %"


def nats(value: float | None) -> str:
    """A loss, or a difference of losses."""
    return NOTHING if value is None else f"{written(value, '.2f')} nats"


def points(value: float, scale: Scale) -> str:
    """A signed difference on a scale: percentage points, or nats."""
    return f"{written(value, '+.2f')} nats" if scale.metric == "nats" else written(100 * value, "+.1f")


def bare(value: float | None, scale: Scale) -> str:
    """A value on its scale without the unit."""
    return amount(value, scale).removesuffix(" %").removesuffix(" nats")


def change(before: float | None, after: float | None, scale: Scale) -> str:
    """A value before and after an attack."""
    if before is None and after is None:
        return NOTHING
    return f"{bare(before, scale)} → {amount(after, scale)}"


def spread(estimate: Estimate | None, scale: Scale) -> str:
    """The smallest and the largest seed."""
    if estimate is None:
        return NOTHING
    if estimate.seeds == 1:
        return "one seed"
    return f"{bare(estimate.low, scale)}\N{EN DASH}{amount(estimate.high, scale)}"


def interval(interval: Interval | None, scale: Scale) -> str:
    """A 95 % interval, or the reason why none exists."""
    if interval is None:
        return TOO_FEW
    low, high = interval.low, interval.high
    if scale.metric != "nats":
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{bare(low, scale)}\N{EN DASH}{amount(high, scale)}"


def breach_steps(breach: Breach | None, budget: int) -> str:
    """The steps to a breach, as the interval that milestones allow, or a lower bound."""
    if breach is None:
        return f"> {budget:,}"
    if breach.by == 0:
        return "0, before any attack"
    if breach.after == 0:
        return f"≤ {breach.by:,}"
    return f"{breach.after:,}\N{EN DASH}{breach.by:,}"


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where there are several."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("ily") else f"{number:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """Names with commas and a last "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def duration(seconds: float) -> str:
    """Seconds as a reader would say them."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_range(cost: BreachCost, unit: Unit) -> str:
    """A breach's cost over seeds, as close as the milestones tell it."""
    if cost.by is None:
        return f"more than {spent(cost.least, unit)}"
    if cost.by == 0:
        return "no training at all"
    if cost.by <= 1.02 * cost.least:
        return spent(cost.by, unit)
    if cost.least == 0:
        return f"at most {spent(cost.by, unit)}"
    least = spent(cost.least, unit).removesuffix(" FLOPs").removesuffix(" updates").removesuffix(" update")
    return f"{least}\N{EN DASH}{spent(cost.by, unit)}"


def spent(cost: float, unit: Unit) -> str:
    """A cost in its unit."""
    return flops(cost) if unit == "flops" else count(round(cost), "update")


def flops(value: float) -> str:
    """FLOPs, as a power of ten where they are many."""
    return f"{number(max(value, 0.0))} FLOPs"


def power_of_ten(exponent: int) -> str:
    """Ten to a power, in plain characters."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def factor(work: WorkFactor | None) -> str:
    """A work factor with its state; `factor_interval` gives the interval."""
    if work is None or work.state == "not estimable" or work.low is None:
        return "not estimable"
    if work.high is None:
        return f"≥ {_times(work.low)}"
    if work.high <= 1.05 * work.low:
        return _times(work.high)
    return f"{_times(work.low)[:-2]}\N{EN DASH}{_times(work.high)}"


def factor_interval(work: WorkFactor | None) -> str:
    """The interval of a work factor's median."""
    if work is None or work.state == "not estimable":
        return ""
    if work.interval is None:
        return TOO_FEW
    endless = work.interval.high == float("inf")
    between = times(work.interval.low, None if endless else work.interval.high)
    return f"95 % interval {between}; breached in {work.breached} of {work.seeds} seeds"


def times(low: float, high: float | None) -> str:
    """A factor between two ends; None: a lower bound."""
    if high is None:
        return f"≥ {_times(low)}"
    return _times(high) if _times(low) == _times(high) else f"{_times(low)[:-2]}\N{EN DASH}{_times(high)}"


def factor_of(value: float) -> str:
    """A factor in a sentence."""
    return f"{value:,.0f} times" if value >= 10 else f"{value:.1f} times"


def number(value: float) -> str:
    """A plain number with two significant digits; a power of ten where it is very large or small."""
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{written(float(digits), '.1f')} × {power_of_ten(int(exponent))}"
    return written(value, ",.0f" if size >= 10 else ".2g")


def _times(value: float) -> str:
    return f"{value:,.0f} ×" if value >= 10 else f"{value:.1f} ×"


def leverage_text(leverage: Leverage) -> str:
    """Added cost to the attacker over the cost of the defence."""
    low, high = number(leverage.low), None if leverage.high is None else number(leverage.high)
    return f"≥ {low}" if high is None else low if low == high else f"{low}\N{EN DASH}{high}"
