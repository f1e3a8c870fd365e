"""The adaptive attacker: the same search whatever stops it, limits that limit, and nothing kept but settings and scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.attacks.space import Choice, Family, Log
from holdfast.campaign.cells import Model
from holdfast.cli.app import main
from holdfast.core.domain import Domain
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.runs.search import search as module
from holdfast.runs.search.confirmation import UNSEEN, confirmation
from holdfast.runs.search.search import Budget, Search, usable_families, write_suite
from holdfast.runs.search.trial import FRESH_SEED, Trial, abilities, attack_of, best_trials, run_trial, thresholds
from holdfast.runs.suites import attacks_of, load_suite
from tests.cli.test_cli import run_here
from tests.conftest import SmallTestbed

FAMILIES = {
    "full": Family(
        replace(pick("holdfast.attacks", "full-adamw-1e-3"), max_steps=8, batch_size=4),
        {"learning_rate": Log(1e-4, 1e-2), "max_steps": Choice((4, 8))},
    ),
    "pruning": Family(pick("holdfast.attacks", "prune-50"), {"share": Choice((0.2, 0.5))}),
}


@pytest.fixture(autouse=True)
def small_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "collect_families", lambda: FAMILIES)


def searched(testbed: SmallTestbed, **changes: Any) -> Search:
    settings: dict[str, Any] = {
        "families": ("full", "pruning"),
        "budget": Budget(trials=6),
        "ability_loss": 0.5,
        **changes,
    }
    return Search(model=str(testbed.folder / "model"), domain=testbed.folder, **settings)


def untimed(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]


@pytest.fixture(scope="module")
def trials(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Trial]]:
    out = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "collect_families", lambda: FAMILIES)
        return out, searched(tiny_testbed).run(out)


def test_every_family_is_tried_as_it_stands_first(trials: tuple[Path, list[Trial]]) -> None:
    _, tried = trials
    assert [trial.family for trial in tried[:2]] == ["full", "pruning"]
    assert [attack_of(trial) for trial in tried[:2]] == [family.attack for family in FAMILIES.values()]
    assert len(tried) == 6


def test_a_search_that_was_stopped_comes_to_the_same_end(
    trials: tuple[Path, list[Trial]], tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    _, whole = trials
    searched(tiny_testbed, budget=Budget(trials=3)).run(tmp_path)
    left = sorted((tmp_path / "trials").iterdir())
    left[0].write_text("{", encoding="utf-8")  # a damaged file is made again
    again = searched(tiny_testbed).run(tmp_path)
    assert untimed(again)[:3] == untimed(whole)[:3]
    assert len(again) == 6


def test_what_is_there_is_not_tried_again(
    trials: tuple[Path, list[Trial]], tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tried = trials

    def never(**kwargs: Any) -> None:
        raise AssertionError(kwargs["family"])

    monkeypatch.setattr(module, "run_trial", never)
    assert searched(tiny_testbed).run(out) == tried


@pytest.mark.slow
def test_processes_change_nothing(tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # a worker has the families of the package
    wanted = searched(tiny_testbed, families=("pruning", "quantisation"))
    one, two = wanted.run(tmp_path / "one"), wanted.run(tmp_path / "two", workers=2)
    # Each trial is one computation of the same shapes, in whichever process of this machine.
    assert untimed(one) == untimed(two)


def test_nothing_but_scores_is_kept(trials: tuple[Path, list[Trial]]) -> None:
    out, tried = trials
    write_suite(out, tried)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json"}


def test_the_best_of_every_family_is_a_suite_that_an_audit_can_run(trials: tuple[Path, list[Trial]]) -> None:
    out, tried = trials
    best = best_trials(tried)
    assert set(best) == {"full", "pruning"}
    for family, trial in best.items():
        assert trial.rank == max(other.rank for other in tried if other.family == family)
    written = write_suite(out, tried)
    assert load_suite(out) == written == attacks_of(str(out))
    assert list(written.values()) == [attack_of(trial) for trial in best.values()]


def test_a_score_takes_off_what_ability_lost_beyond_the_bound(trials: tuple[Path, list[Trial]]) -> None:
    _, tried = trials
    for trial in tried:
        before = trial.curve[0][2]
        scores = {hazard - max(0.0, before - 0.5 - ability) for _, hazard, ability in trial.curve[1:]}
        assert trial.score == max(scores)
        assert trial.steps == trial.curve[-1][0]


@pytest.mark.parametrize(
    ("budget", "ended"),
    [
        (Budget(trials=2), "trials"),
        (Budget(trials=9, steps=10), "steps"),
        (Budget(trials=9, tokens=30), "tokens"),
        (Budget(trials=9, flops=1e3), "flops"),
    ],
)
def test_a_search_ends_at_the_first_limit(budget: Budget, ended: str) -> None:
    one = Trial(key="", family="full", settings={}, attack={}, steps=5, tokens=20, flops=600.0)
    assert budget.reached([one]) == ""
    assert budget.reached([one, one]) == ended


def test_a_trial_below_the_median_of_earlier_ones_is_stopped(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "target": searched(tiny_testbed), "family": "full", "settings": {}, "attack": FAMILIES["full"].attack,
    }  # fmt: skip
    run_trial(**arguments, limits=(2.0, 2.0), key="a", file=tmp_path / "a.json")
    run_trial(**arguments, limits=(-1.0, -1.0), key="b", file=tmp_path / "b.json")
    stopped, whole = (Trial.read(tmp_path / f"{name}.json") for name in "ab")
    assert stopped is not None
    assert whole is not None
    assert (stopped.status, stopped.steps) == ("pruned", 5)
    assert (whole.status, whole.steps) == ("finished", 8)


def test_thresholds_are_medians_once_there_are_three() -> None:
    def trial(*halfway: float) -> Trial:
        return Trial(key="", family="full", settings={}, attack={}, halfway=list(halfway))

    assert thresholds([trial(0.1, 0.2), trial(0.3, 0.4)]) == ()
    assert thresholds([trial(0.1, 0.2), trial(0.3, 0.4), trial(0.2)]) == (0.2, pytest.approx(0.3))


def test_an_attack_that_diverges_is_a_failed_trial(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any) -> Any:
        raise NonFinite("the loss became nan at step 1")
        yield

    monkeypatch.setattr(type(FAMILIES["full"].attack), "steps", diverges)
    tried = searched(tiny_testbed, families=("full",), budget=Budget(trials=1)).run(tmp_path)
    assert [trial.status for trial in tried] == ["failed"]
    with pytest.raises(
        HoldfastError, match="every attack that was tried failed, the first because: the loss became nan"
    ):
        write_suite(tmp_path, tried)


def test_a_confirmation_has_fresh_seeds_and_asks_what_the_search_did_not(
    trials: tuple[Path, list[Trial]], tiny_testbed: SmallTestbed
) -> None:
    _, tried = trials
    model = Model(label="model", path=str(tiny_testbed.folder / "model"), role="defended")
    campaign = confirmation(searched(tiny_testbed), tried[0], [model], 5)
    assert campaign.seeds == tuple(range(FRESH_SEED, FRESH_SEED + 5))
    names = {name for cell in campaign.cells() for name, _ in cell.evaluations}
    assert UNSEEN in names
    assert "hazard" in names
    assert "hazard_selection" not in names
    domain = Domain.open(tiny_testbed.folder)
    [even], [odd] = abilities(domain, "even"), abilities(domain, "odd")
    assert not set(even.selected(domain)) & set(odd.selected(domain))
    assert len(even.selected(domain)) + len(odd.selected(domain)) == len(domain.questions(even.questions).questions)
    with pytest.raises(HoldfastError, match="at least 5 fresh seeds"):
        confirmation(searched(tiny_testbed), tried[0], [model], 3)


def test_families_are_held_out_and_those_for_other_sizes_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    usable = usable_families(held_out=("full",))
    assert {"low-rank", "interpolation"} <= set(usable)
    assert not {"full", "full-small", "full-large"} & set(usable)
    assert {"full-small", "interpolation"} <= set(usable_families(size="small"))
    assert not {"full", "full-large"} & set(usable_families(size="small"))
    with pytest.raises(HoldfastError, match="no family 'ful'; did you mean full"):
        usable_families(("ful",))


def test_a_search_without_families_takes_those_of_the_model_s_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("holdfast.runs.search.search.model_size", lambda model: "small")
    assert Search(model="m", domain="d").families == usable_families(size="small")
    with pytest.raises(HoldfastError, match="no family is left"):
        Search(model="m", domain="d", families=())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ("ful",)}, "no family 'ful' to search; did you mean full"),
        ({"families": ()}, "no family is left"),
        ({"ability_loss": 5.0}, "between 0 and 1, such as 0.05, not 5.0"),
        ({"seed": 1000}, "kept for the confirmation"),
    ],
)
def test_settings_without_meaning_are_refused(
    tiny_testbed: SmallTestbed, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HoldfastError, match=message):
        searched(tiny_testbed, **changes)


@pytest.mark.parametrize("role", ["hazard_selection", "ability"])
def test_a_domain_without_questions_to_choose_by_is_refused(
    tiny_testbed: SmallTestbed, tmp_path: Path, role: str
) -> None:
    folder = tmp_path / "domain"
    shutil.copytree(tiny_testbed.folder, folder)
    toml = (folder / "domain.toml").read_text(encoding="utf-8")
    if role == "ability":
        toml = toml.replace('measures = "ability"', 'measures = "trainability"')
    else:
        toml = toml.replace("[questions.hazard_selection]", "[questions.hazard_other]")
    (folder / "domain.toml").write_text(toml, encoding="utf-8")
    wanted = replace(searched(tiny_testbed), domain=folder)
    with pytest.raises(
        HoldfastError, match="questions to choose an attack by" if role != "ability" else "no ability questions"
    ):
        wanted.check()


def test_the_command_finds_confirms_and_says_so(
    tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    folder, out = str(tiny_testbed.folder), tmp_path / "out"
    command = [
        "search", "--model", f"{folder}/never_exposed", "--undefended", f"{folder}/model", "--domain", folder, "--out", str(out),
        "--trials", "2", "--workers", "1", "--ability-loss", "0.9", "--families", "pruning",
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "confirmed on the claim questions in one run, for it draws nothing" in said
    assert "ended by the budget of trials" in said
    assert f"--suite {out}" in said
    table = json.loads((out / "search.json").read_text(encoding="utf-8"))
    assert len(table["trials"]) == 2
    assert table["confirmation"]["seeds"] == 1
    assert table["winner"] in {trial["key"] for trial in table["trials"]}
    assert "<svg" in (out / "search.svg").read_text(encoding="utf-8")
    assert not list(out.rglob("*.safetensors"))
    assert main(command) == 0  # nothing is left to do
    audit = tmp_path / "audit"
    again = [
        "--model",
        f"{folder}/never_exposed",
        "--undefended",
        f"{folder}/model",
        "--domain",
        folder,
        "--seeds",
        "1",
    ]
    assert main(["audit", *again, "--suite", str(out), "--workers", "1", "--out", str(audit)]) == 0
    plan = json.loads((audit / "campaign.json").read_text(encoding="utf-8"))
    assert plan["attacks"] == list(load_suite(out))
    assert plan["details"]["searched"] == ["Prune"], "what a search chose is not blind"
    assert main([*command, "--confirm-seeds", "3"]) == 2
    capsys.readouterr()
    assert main([*command[:-1], "nonsense"]) == 2
    assert "there is no family 'nonsense'" in capsys.readouterr().err
