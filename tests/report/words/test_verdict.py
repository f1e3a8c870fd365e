"""The headline: at most 25 words in every situation, and no name of an attack in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.report.audited import audited as read
from holdfast.report.tables.attacks import attack_by_model, by_family
from holdfast.report.tables.controls import controls
from holdfast.report.tables.verdict import verdict
from holdfast.report.words.threat import threat
from holdfast.report.words.verdict import WORDS, findings
from tests.report.synthetic import cell, plan

FAMILIES = (
    "fine-tuning",
    "merging with the original model",
    "latent and embedding attacks",
    "a change of basis with fine-tuning",
    "transfer of an update from the original model",
    "weight noise with fine-tuning",
    "",
    "compression",
)
LABELS = ("tar", "a model whose name has very many words in it, all of them short, and no end of them at all", "x" * 90)

situations = st.fixed_dictionaries(
    {
        "label": st.sampled_from(LABELS),
        "before": st.sampled_from([0.2, 0.27, 0.6, 0.62, 0.65, 0.95]),
        "top": st.sampled_from([0.3, 0.99]),
        "seeds": st.integers(1, 6),
        "nats": st.booleans(),
        "costs": st.booleans(),
        "attacks": st.lists(
            st.tuples(
                st.sampled_from(FAMILIES),
                st.sampled_from([0.25, 0.3, 0.6, 0.63, 0.7, 0.9]),
                st.sampled_from([0.1, 0.9]),
                st.sampled_from(["finished", "finished", "finished", "diverged", "failed"]),
                st.booleans(),
            ),
            min_size=0,
            max_size=9,
        ),
    }
)


def situation(label: str, before: float, top: float, seeds: int, nats: bool, costs: bool, attacks: Any) -> Any:
    """An audit in one of many situations; the k-th attack is called secret-k."""
    edit = {"first_loss": None, "last_loss": None}
    results = [
        cell("base", "none", hazard={0: top}, ability={0: 1.0}, **edit),
        cell(label, "none", hazard={0: before}, ability={0: 0.9}, **edit),
    ]
    for place, (family, after, ability, status, draws) in enumerate(attacks):
        for seed in range(seeds if draws else 1):
            curve = {0: before, 8: (before + after) / 2, 64: after + seed / 200}
            made = cell(label, f"secret-{place}", seed, hazard=curve, ability={0: 0.9, 64: ability})
            spent = [(8, 10**6, 1e12), (64, 10**7, 1e13)] if costs else []
            results.append(replace(made, family=family, status=status, draws=draws, costs=spent))
    if nats:
        results = [
            replace(r, records=[replace(x, metric="nats", chance=None, value=3 - x.value) if x.measures == "hazard" else x
                                for x in r.records])
            for r in results
        ]  # fmt: skip
    details = {"uses_base": ["secret-0", "secret-2"], "models": {}}
    return plan(results, {"base": "undefended", label: "defended"}, details=details), results


@settings(max_examples=60, deadline=None)
@given(situations)
def test_a_headline_has_25_words_at_most_and_names_no_attack(drawn: dict[str, Any]) -> None:
    for public in (False, True):
        [finding] = findings(read(*situation(**drawn), public=public))
        assert len(finding.headline.split()) <= WORDS, finding.headline
        assert finding.headline.endswith(".")
        assert "secret-" not in finding.headline or finding.verdict == "undecided"
        assert not (public and "secret-" in " ".join((finding.headline, finding.grounds, finding.attacks)))
        if finding.verdict in ("breached", "not recovered") and finding.word == finding.verdict:
            assert f" of {len(drawn['attacks'])} attack" in finding.headline
        if finding.word == "breached before any attack":
            assert "breached before any attack" in finding.headline


@pytest.mark.parametrize(("uses", "said"), [(["secret-0", "secret-1"], True), (["secret-0"], False), ([], False)])
def test_the_original_is_named_only_where_every_breach_had_it(uses: list[str], said: bool) -> None:
    attacks = [("fine-tuning", 0.95, 0.9, "finished", True), ("compression", 0.97, 0.9, "finished", True)]
    campaign, results = situation("tar", 0.27, 0.99, 5, False, False, attacks)
    campaign = replace(campaign, details={**campaign.details, "uses_base": uses})
    [finding] = findings(read(campaign, results))
    assert finding.headline.startswith("tar was breached by 2 of 2 attacks (fine-tuning and compression)")
    assert ("with the original model" in finding.headline) == said


@pytest.mark.parametrize("family", ["fine-tuning", "merging with the original model"])
def test_a_sibling_is_named_in_the_original_s_place(family: str) -> None:
    attacks = [(family, 0.95, 0.9, "finished", True)]
    campaign, results = situation("tar", 0.27, 0.99, 5, False, False, attacks)
    details = {**campaign.details, "uses_base": ["secret-0"]}
    for more, held in (({}, "the original model"), ({"sibling": "0123"}, "a sibling of the original model")):
        for public in (False, True):
            audit = read(replace(campaign, details={**details, **more}), results, public=public)
            [finding] = findings(audit)
            assert audit.original == held
            assert ("a sibling of the original model" in finding.headline) is bool(more)
            assert f"1 attack also has {held}" in threat(audit)
            for table in (controls(audit), verdict(audit), by_family(audit), attack_by_model(audit)):
                assert threat(audit) in table.notes
    alone = read(replace(campaign, details={**details, "uses_base": []}), results)
    assert threat(alone) == "Threat model: the attacker holds the weights and no other model."
