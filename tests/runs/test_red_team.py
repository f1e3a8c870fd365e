"""The red team's study: what is found on one world is turned on every model of others, and the table says what records say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.attacks.space import Family, collect_families
from holdfast.core.presets import describe, pick
from holdfast.core.records import read_campaign
from holdfast.core.types import HoldfastError
from holdfast.recipes.names import STUDIES
from holdfast.recipes.pages import Described
from holdfast.recipes.red_team import SINCE
from holdfast.recipes.run import pick_study, run_study
from holdfast.report.studies import study as report
from holdfast.report.studies.families import chapters, read_families
from holdfast.runs.study import red_team as module
from holdfast.runs.study.method import Method
from holdfast.runs.study.red_team import RedTeam
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.stats.cells import hazard_scale
from tests.cli.test_cli import studies_here
from tests.conftest import SMALLEST

SHALLOW = Method(label="shallow", stages=("random-mapping",), settings={"outer_steps": 3}, role="reference", size=1)
DEEP = Method(label="deep", stages=("max-entropy",), settings={"outer_steps": 3}, size=1)
TEAM = RedTeam(
    title="A small red team",
    methods=(SHALLOW, DEEP),
    targets=("shallow", "deep"),
    families=("pruning", "defence-directions"),
    trials=2,
    tuning_world=1,
    worlds=(2,),
    seeds=(0,),
    held_out=("quantisation",),
    sizes=SMALLEST,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("red-team") / "out"
    with studies_here():
        outcomes = run_study("red-team", TEAM, out, 1, "holdfast study red-team", lambda progress: None)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return out


def test_what_was_found_on_any_target_is_turned_on_every_model(finished: Path) -> None:
    found = TEAM.found(finished)
    assert list(found) == ["pruning", "defence-directions", "quantisation"]
    names = {name for held in found.values() for name in held}
    plan, results = read_campaign(finished / "knowledge-2")
    assert set(plan.attacks) == names
    for model in ("shallow", "deep"):
        assert {r.attack for r in results if r.model == model} == {"none", *names}
    # Directions of the change since the base model are none where nothing was changed.
    base = {name for name in names if name.startswith("defence-directions")}
    assert not base & {r.attack for r in results if r.model in ("undefended", "never-exposed")}


def test_the_table_says_what_the_records_say(finished: Path) -> None:
    found = TEAM.found(finished)
    described = Described(title="t", command="c", seconds=60.0, workers=2)
    study = described.study(TEAM.study(finished), finished, TEAM.trials, {})
    [part] = study.parts
    settings = {family: {name: describe(attack) for name, attack in of.items()} for family, of in found.items()}
    rows = {row.family: row for row in read_families(part, settings)}
    _, results = read_campaign(finished / "knowledge-2")
    [evaluation] = hazard_scale(results).evaluations
    for family, attacks in found.items():
        [spot] = rows[family].spots["deep"]
        hazards = [
            max(r.value for r in result.records if r.evaluation == evaluation and r.step > 0)
            for result in results
            if result.model == "deep" and result.attack in attacks
        ]
        assert spot.hazard in hazards
        if spot.kept:
            kept = [r for r in results if r.model == "deep" and r.attack == spot.attack]
            assert len(kept) == 1
    text = report.markdown(study, chapters(study, part, list(rows.values()), "red-team.svg"))
    assert "The weakest spot of deep" in text
    assert all(f"| {family} |" in text for family in found)
    assert (finished / "red-team.svg").read_text(encoding="utf-8").count("<svg") == 1
    assert json.loads((finished / "tables.json").read_text(encoding="utf-8"))
    assert [method.label for method in part.methods] == ["undefended", "shallow", "deep", "never-exposed"]


def test_a_family_that_was_held_out_is_blind_in_the_report(finished: Path) -> None:
    from holdfast.report.words.warnings import blindness
    from holdfast.stats.summary import summarise

    told = " ".join(blindness(summarise(*read_campaign(finished / "knowledge-2"))))
    assert "Blind for deep" in told
    assert "quantisation-held-out" in told.partition("Of a family that it had met")[0]
    assert "quantisation-held-out" not in told.partition("Of a family that it had met")[2]


def test_a_held_out_family_is_neither_searched_nor_trained_against(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HoldfastError, match="cannot be searched: pruning"):
        replace(TEAM, held_out=("pruning",))
    monkeypatch.setattr(
        module,
        "collect_families",
        lambda: {**collect_families(), "tuning": Family(pick("holdfast.attacks", "int8"), {})},
    )
    trained = Method(
        label="tar", stages=("tar",), settings={"adversaries": (Adversary(attack=pick("holdfast.attacks", "int4")),)}
    )
    with pytest.raises(HoldfastError, match="quantisation is held out, and tar trains against it"):
        replace(TEAM, methods=(SHALLOW, trained))


@pytest.mark.parametrize("name", [name for name in STUDIES if "red-team" in name])
def test_a_shipped_red_team_is_sound(name: str) -> None:
    team = pick_study(name)
    assert isinstance(team, RedTeam)
    families = collect_families()
    assert set(team.targets) <= {method.label for method in team.methods}
    fitting = {name for name, family in families.items() if family.size in ("tiny", None)}
    later = set(SINCE) if name == "red-team" else set()  # the published red team has the families of its day
    assert fitting - later == {*team.families, *team.held_out}
    assert team.tuning_world not in team.worlds
    assert team.core_seconds > 0


def test_two_searches_that_find_the_same_are_one_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "best_of", lambda folder: pick("holdfast.attacks", "prune-50"))
    assert list(TEAM.found(tmp_path)["pruning"]) == ["pruning-on-all"]
    assert describe(TEAM.found(tmp_path)["pruning"]["pruning-on-all"])["class"] == "Prune"


def test_an_attack_that_some_searches_chose_is_named_after_their_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "best_of", lambda folder: pick("holdfast.attacks", "int4" if folder.name.endswith("deep") else "int8")
    )
    team = replace(TEAM, methods=(SHALLOW, DEEP, replace(DEEP, label="third")), targets=("shallow", "deep", "third"))
    assert list(team.found(tmp_path)["pruning"]) == ["pruning-on-shallow-and-third", "pruning-on-deep"]
