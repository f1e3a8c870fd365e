from __future__ import annotations

from dataclasses import replace

from holdfast.report.words.status import Planned, attack_cost, plan_table, power, status, status_table
from holdfast.stats.power import detectable
from holdfast.stats.progress import progress
from tests.report.synthetic import audited


def test_how_an_audit_stands() -> None:
    campaign, results = audited(1, diverged=False)
    ended = [replace(results[0], status="failed", reason="out of memory"), *results[1:-3]]
    campaign_progress = progress(campaign, ended)
    first, failed = status(campaign_progress, running=False)
    assert first.startswith(f"{len(results) - 4} of {len(results)} runs ended, in ")
    assert "of work left, divided by the processes. None is running there." in first
    assert failed == "Failed: out of memory"
    table = status_table(campaign_progress)
    assert table.records()[0] == {"model": "base", "finished": "9", "diverged": "0", "failed": "1"}
    done = status(progress(campaign, results), running=True)
    assert done[0].endswith("of work. A holdfast is running there.")
    assert len(done) == 1


def test_what_a_planned_audit_can_tell() -> None:
    enough = detectable(300, 5, 10)
    assert enough is not None
    plans = [
        Planned(seeds=5, runs=100, detectable=enough, seconds=7300.0, flops=2e12, tokens=1e6),
        Planned(seeds=2, runs=40, detectable=detectable(300, 2, 10), seconds=60.0, flops=2e12, tokens=1e6),
    ]
    first, second = plan_table(plans).records()
    assert first["detectable, one attack"] == f"{100 * enough.one:.0f} points"
    assert first["time"] == "2.0 h"
    assert second["detectable, whole suite"] == "no interval"
    assert f"a true distance of {100 * enough.one:.0f} points" in power(enough, 300, 5, 10)
    assert "too few for an interval" in power(None, 300, 2, 10)
    assert power(None, 0, 5, 10) == ""


def test_what_an_attack_took() -> None:
    costs = {"tokens": 1000.0, "flops": 2e9, "peak_memory": 3e9, "seconds": 60.0}
    expected = "The attack took 8 updates, 1,000 tokens, 2.0 × 10⁹ FLOPs, 3 GB at the peak, 60 s, measuring left out."
    assert attack_cost(8, costs) == expected
    assert attack_cost(8, {}) == "The attack took 8 updates, measuring left out."
