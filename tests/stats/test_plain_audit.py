"""Verdicts and work factors, against a plain script that knows nothing of holdfast."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random

import pytest

from holdfast.core.files import digest
from holdfast.core.records import CellResult, read_campaign
from holdfast.stats.audit import figures
from holdfast.stats.recovery import BREACH
from holdfast.stats.summary import summarise
from tests.reference.audit import recompute
from tests.report.synthetic import audited, cell, plan, record, write


def costed(result: CellResult, flops: float) -> CellResult:
    """The same run with FLOPs at each of its milestones."""
    steps = sorted({record.step for record in result.records if record.step > 0})
    return replace(result, costs=[(step, 192 * step, flops * step) for step in steps])


def audit(seed: int) -> list[CellResult]:
    """Five seeds of every attack, each attack with a price of its own, and hazards drawn anew."""
    draw = Random(seed)
    _, results = audited(5, diverged=seed % 2 == 0)
    price = {name: draw.uniform(1e8, 1e10) for name in sorted({result.attack for result in results})}
    found = []
    for result in results:
        shift = draw.uniform(-0.2, 0.25)
        records = [
            replace(r, value=min(max(r.value + shift * r.step / 1000, 0.0), 1.0)) if r.measures == "hazard" else r
            for r in result.records
        ]
        found.append(costed(replace(result, records=records), price[result.attack]))
    return [*found, *(probed(model) for model in {result.model: None for result in results})]


def probed(model: str) -> CellResult:
    """A probe of an untouched model, which is a cell of its own."""
    name = digest(["probe", model])[:16]
    steps = record("benign-learning", 0, 40.0, measures="trainability", metric="steps", chance=None, cell=name)
    return replace(cell(model, "none"), cell=name, records=[steps])


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_and_work_factors_are_those_of_the_plain_script(seed: int, tmp_path: Path) -> None:
    results = audit(seed)
    folder = write(tmp_path, plan(results), results)
    campaign, held = read_campaign(folder)
    summary = summarise(campaign, held)
    found = figures(campaign, held, summary)
    expected = recompute(folder)
    assert set(expected) == {"random-mapping", "tar", "never-exposed"}
    for label, (verdict, low, high, least, most) in expected.items():
        model = next(model for model in summary.models if model.label == label)
        assert model.verdict == verdict
        factor = found.of(label).work_factor[BREACH]
        if low is None:
            assert (factor.state, factor.low) == ("not estimable", None)
            continue
        assert factor.low == pytest.approx(low)
        assert (inf if factor.high is None else factor.high) == pytest.approx(high)
        assert factor.interval is not None
        assert (factor.interval.low, factor.interval.high) == pytest.approx((least, most))
