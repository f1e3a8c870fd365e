from __future__ import annotations

from dataclasses import fields, replace
from datetime import date
from pathlib import Path

import pytest

from holdfast.core.records import CellResult
from holdfast.core.release import (
    Baseline,
    Change,
    Decision,
    Independence,
    Release,
    SafeReference,
    Tier,
)
from holdfast.core.types import HoldfastError
from holdfast.report.audited import Audited, audited
from holdfast.report.chapters import rules
from holdfast.report.page import build_report
from holdfast.report.tables.rules import changelog, tiers
from holdfast.report.words.rules import NOT_STATED, answers, voiding
from holdfast.stats.rules import best_peer, margin, marginal, tier_reach
from tests.report import synthetic
from tests.report.synthetic import ROLES, plan, write

SECRET = "full-adamw-1e-3"
STATED = Release(
    version="1.2",
    date=date(2026, 11, 26),
    expires=date(2027, 11, 26),
    voids=[f"somebody publishes {SECRET}"],
    forecast="half of the effect is gone in two years",
    validity="a third of the harm is covered",
    use="a chat assistant",
    notes="the board was told of mixed-1e-3",
    tiers=[
        Tier(name="one person", flops=5e9, why=f"has {SECRET}"),
        Tier(name="a laboratory", flops=1e20, original=True),
    ],
    baseline=Baseline(label="random-mapping", why="the best there is"),
    reference=SafeReference(label="never-exposed", margin=0.02),
    independence=Independence(auditor="A. Auditor", relation="independent"),
    decision=Decision(outcome="accept with conditions", by="the board", conditions=["no larger model"]),
    changes=[Change(version="1.2", date=date(2026, 11, 26), what=f"added {SECRET}")],
)


def priced(results: list[CellResult]) -> list[CellResult]:
    return [
        replace(
            r,
            costs=[(s, 192 * s, 1e8 * s) for s in sorted({q.step for q in r.records if q.step})],
            family="full fine-tuning",
        )
        for r in results
    ]


def an_audit(release: Release | None = None, *, public: bool = False, seeds: int = 5) -> Audited:
    _, results = synthetic.audited(seeds, diverged=False)
    results = priced(results)
    return audited(plan(results), results, public=public, release=release)


@pytest.fixture(scope="module")
def bare() -> Audited:
    return an_audit()


@pytest.fixture(scope="module")
def told() -> Audited:
    return an_audit(STATED)


def by_question(audit: Audited) -> dict[str, str]:
    return {answer.question: answer.text for answer in answers(audit)}


def test_what_nobody_stated_is_not_stated_and_never_invented(bare: Audited) -> None:
    said = {answer.question: answer for answer in answers(bare)}
    for question in (
        "Expected use of the model",
        "As safe as a safe reference model?",
        "Until when does it hold?",
        "Who evaluated, and how independent?",
        "What was decided, and how?",
        "Version and changelog",
    ):
        assert said[question].text.startswith(NOT_STATED), question
        assert said[question].source == ""
    assert "which attackers matter" in said["Which attackers, with which means?"].text
    assert "no comparable public model" in said["Marginal hazard beside the best comparable public model"].text
    assert said["Will the effect of the safeguard last?"].text.endswith("A forecast is not stated.")
    assert not tiers(bare)
    assert not changelog(bare)


def test_every_question_names_where_it_is_asked(told: Audited) -> None:
    for answer in answers(told):
        assert answer.where.startswith(("Code ", "NIST "))
        assert answer.text
    asked = " ".join(answer.where for answer in answers(told))
    for place in ("5.1", "1.3.3", "2.2", "3.1", "3.2", "3.3", "7.4", "7.6", "7.2 (2)", "NIST"):
        assert place in asked, place


def test_what_was_stated_stands_in_its_place(told: Audited) -> None:
    said = by_question(told)
    assert "a third of the harm is covered" in said["External validity"]
    assert said["Expected use of the model"] == "a chat assistant"
    assert "independent" in said["Who evaluated, and how independent?"]
    assert "qualification: not stated" in said["Who evaluated, and how independent?"]
    assert said["What was decided, and how?"].startswith("Accept with conditions, decided by: the board.")
    assert "Expires on 2027-11-26. That is more than the six months" in said["Until when does it hold?"]
    assert "Version 1.2, 2026-11-26; 1 change below." in said["Version and changelog"]
    assert voiding(told)[-1] == f"somebody publishes {SECRET} (stated)"
    soon = replace(STATED, expires=date(2027, 5, 26))
    assert by_question(replace(told, release=soon))["Until when does it hold?"] == "Expires on 2027-05-26."


def test_every_field_of_a_release_is_shown(told: Audited, tmp_path: Path) -> None:
    """A field that the report left out would be a field that is parsed and ignored."""
    full = an_audit(STATED)
    for field in fields(Release):
        empty = replace(STATED, **{field.name: "" if isinstance(getattr(STATED, field.name), str) else None})
        assert rules(replace(full, release=empty), "c1") != rules(full, "c1"), field.name


def test_a_budget_reaches_what_costs_no_more(told: Audited) -> None:
    [model] = told.judged
    small, large = tier_reach(told.figures, model, STATED.tiers or [])
    frontier = told.figures.of(model.label).frontier
    assert small.worst is not None
    assert small.worst == [one for one in frontier if one.cost <= 5e9][-1]
    assert small.worst.cost <= 5e9 < frontier[-1].cost
    assert (small.covered, large.covered) == (True, False)
    reference = next(m for m in told.summary.models if m.label == "random-mapping")
    all_of_it = {cost.attack: cost.by for cost in told.figures.of("random-mapping").breach_costs}
    affordable = {a for a in reference.under("breached") if (by := all_of_it[a]) is not None and by <= 5e9}
    [reach] = tier_reach(told.figures, reference, [Tier(name="x", flops=5e9)])
    assert set(reach.breaching) == affordable != set(reference.under("breached"))
    [reach] = tier_reach(replace(told.figures, unit="updates"), model, [Tier(name="x", flops=5e9)])
    assert (reach.covered, reach.worst, reach.breaching) == (None, None, ())


def test_only_an_attacker_with_the_original_uses_attacks_that_need_it(told: Audited) -> None:
    reference = next(m for m in told.summary.models if m.label == "random-mapping")
    breached = tuple(reference.under("breached"))
    figures = replace(told.figures, uses_base=breached)
    without, with_it = (
        tier_reach(figures, reference, [Tier(name="x", flops=1e30, original=original)])[0] for original in (False, True)
    )
    assert without.breaching == ()
    assert set(with_it.breaching) == set(breached)


@pytest.mark.parametrize(
    ("label", "bound", "state"),
    [("random-mapping", 0.0, "within"), ("never-exposed", 0.5, "within"), ("never-exposed", 0.0, "beyond")],
)
def test_a_margin_is_kept_where_the_whole_interval_keeps_it(
    label: str, bound: float, state: str, told: Audited
) -> None:
    found = margin(told.summary, told.figures, "tar", SafeReference(label=label, margin=bound))
    assert found.state == state


def test_too_few_seeds_decide_no_margin() -> None:
    audit = an_audit(STATED, seeds=2)
    assert (
        margin(audit.summary, audit.figures, "tar", SafeReference(label="random-mapping", margin=0.5)).state
        == "undecided"
    )


def test_the_best_peer_stands_in_where_no_baseline_is_stated() -> None:
    _, results = synthetic.audited(5, diverged=False)
    results = priced(results)
    roles = {**ROLES, "random-mapping": "peer"}
    audit = audited(plan(results, roles), results)
    assert best_peer(audit.summary, audit.figures) == "random-mapping"
    found = marginal(audit.summary, audit.figures, "tar", None)
    assert found is not None
    assert found.comparison is not None
    assert found.comparison.difference < -0.3
    text = by_question(audit)["Marginal hazard beside the best comparable public model"]
    assert "random-mapping 9" in text
    assert text.endswith("Whether it is the best comparable public model is not stated.")


def test_elicitation_is_counted_from_the_records(bare: Audited) -> None:
    effort = bare.efforts["tar"]
    assert (effort.attacks, effort.families, effort.seeds) == (9, 1, 5)
    assert effort.working == sum(attack.strength == "breaks the reference" for attack in bare.summary.attacks) == 8
    assert (effort.searched, effort.probed, effort.no_result) == (False, False, 0)
    assert effort.blind == 9
    assert (
        "8 attacks break the shallow reference"
        in by_question(bare)["Did the attacks draw out what such attackers could?"]
    )


def test_the_public_form_names_no_attack_and_keeps_the_counts(told: Audited) -> None:
    public = an_audit(STATED, public=True)
    assert rules(public, "c1").public
    text = str(rules(public, "c1"))
    for attack in (*synthetic.FIGURES, "the board was told"):
        assert attack not in text, attack
    assert public.efforts == told.efforts
    assert "somebody publishes full fine-tuning (stated)" in text


def test_the_page_finds_the_statement_in_the_folder(tmp_path: Path) -> None:
    _, results = synthetic.audited(1, diverged=False)
    results = [r for r in results if r.attack in ("none", SECRET)]
    folder = write(tmp_path / "audit", plan(results), results)
    other = tmp_path / "other.toml"
    other.write_text('use = "<script>alert(1)</script>"')
    build_report([folder], tmp_path / "a.html", release=other)
    page = (tmp_path / "a.html").read_text()
    assert "What rules and frameworks ask" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    (folder / "release.toml").write_text('[baseline]\nlabel = "llama"')
    with pytest.raises(HoldfastError, match="is no model of the audit"):
        build_report([folder], tmp_path / "b.html")
    with pytest.raises(HoldfastError, match="--release is about one audit"):
        build_report([folder, folder], tmp_path / "b.html", release=other)
