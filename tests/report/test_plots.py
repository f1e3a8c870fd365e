from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.report import plots
from holdfast.stats.summary import summarise
from tests.report.synthetic import audited, cell, plan

HOSTILE = '<script>alert("$x^2$")</script> $\\frac{1}{0}$ & ]]> --> \x1b'


def test_the_same_records_give_the_same_picture() -> None:
    summary = summarise(*audited(1))
    first, second = (plots.relearning(summary, "mixed-1e-3", "c1-curve0") for _ in range(2))
    assert first == second
    assert first is not None
    assert "never-exposed 2" in first.alt
    assert not re.search(r"20\d\d-\d\d-\d\d|dc:date|<metadata", first.svg)


def test_ids_differ_between_pictures_and_every_reference_resolves() -> None:
    summary = summarise(*audited())
    made = [plots.relearning(summary, attack.name, f"c1-curve{i}") for i, attack in enumerate(summary.attacks)]
    svgs = [picture.svg for picture in (*made, plots.overview(summary, "c1-overview")) if picture]
    ids = [found for svg in svgs for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)} <= own


def test_texts_stay_texts() -> None:
    summary = summarise(*audited())
    picture = plots.relearning(summary, "mixed-1e-3", "p")
    assert picture is not None
    texts = {element.text for element in ElementTree.fromstring(picture.svg).iter(f"{{{plots.SVG}}}text")}
    assert {"attack steps", "hazard, %", "chance", "threshold", "0", "100", "tar", "never-exposed"} <= texts


def test_hostile_names_are_no_markup_and_no_formula() -> None:
    results = [cell(HOSTILE, HOSTILE, hazard={0: 0.2, 8: 0.5}, ability={0: 0.9, 8: 0.9})]
    summary = summarise(plan(results, {HOSTILE: "defended"}), results)
    for picture in (plots.relearning(summary, HOSTILE, "a"), plots.overview(summary, "b")):
        assert picture is not None
        assert "<script" not in picture.svg
        ElementTree.fromstring(picture.svg)


def test_diverged_and_single_points_and_losses_are_drawn() -> None:
    from tests.report.synthetic import record

    results = [
        cell("tar", hazard={0: 0.3}, status="diverged"),
        cell("tar", seed=1, hazard={0: 0.3, 1: 0.4}, status="diverged"),
    ]
    assert plots.relearning(summarise(plan(results), results), "full-adamw-1e-3", "p") is not None
    assert plots.overview(summarise(plan(results), results), "p") is None
    nats = [replace(cell(), records=[record("hazard-loss", step, 3.0 - step / 10) for step in (0, 8)])]
    picture = plots.relearning(summarise(plan(nats), nats), "full-adamw-1e-3", "p")
    assert picture is not None
    assert "hazard, nats" in picture.svg


def test_each_model_is_drawn_its_own_way() -> None:
    labels = [f"tar-{i}" for i in range(6)]
    results = [cell(label, hazard={0: 0.3, 8: 0.3}) for label in labels]
    drawn = plots.styles(summarise(plan(results, dict.fromkeys(labels, "defended")), results))
    assert len(set(drawn.values())) == len(labels)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).map(sorted), st.floats(0.01, 0.2))
def test_labels_keep_their_order_and_their_distance(heights: list[float], gap: float) -> None:
    moved = plots.spaced(heights, gap)
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(moved))
    if all(after - before >= gap for before, after in pairwise(heights)):
        assert moved == pytest.approx(heights)
    assert fmean(moved) == pytest.approx(fmean(heights))


def test_pictures_take_the_colours_of_the_page() -> None:
    picture = plots.relearning(summarise(*audited(1)), "mixed-1e-3", "p")
    assert picture is not None
    assert "var(--ink)" in picture.svg
    assert not re.search(r"#000000|#374151|#6b7280|#9ca3af", picture.svg)
