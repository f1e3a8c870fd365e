"""Studies: equal trials, untouched claim worlds, a table that says what the records say, and no work done twice."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from holdfast.core.options import Options
from holdfast.core.presets import collect, fields, pick
from holdfast.core.records import read_campaign
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.recipes import paper_tables
from holdfast.recipes.names import STUDIES
from holdfast.recipes.pages import Described
from holdfast.recipes.run import pick_study, run_demo, run_study
from holdfast.report.studies import study as report
from holdfast.report.studies.methods import MethodTable, chapter, read_methods
from holdfast.report.studies.steps import Along
from holdfast.runs.study.method import Method
from holdfast.runs.study.study import Part, Study
from holdfast.runs.study.tuning import Trial
from holdfast.stats.cells import hazard_scale
from holdfast.testbed.folder import pretraining_flops
from tests.cli.test_cli import studies_here
from tests.conftest import SMALLEST, SmallTestbed

MAPPING = Method(
    label="mapping", stages=("random-mapping",), space={"learning_rate": (1e-3, 2e-3), "outer_steps": (3, 4)}, size=1
)
PLAIN = Method(
    label="entropy", stages=("random-mapping", "max-entropy"), settings={"outer_steps": 2}, role="reference", size=1
)
PART = Part(
    kind="knowledge",
    methods=(MAPPING, PLAIN),
    suite="one",
    attacks=("full-adamw-3e-3",),
    tuning_attacks=("full-sgd-3e-1",),
    selection="hazard_selection",
)
STUDY = Study(title="A small study", parts=(PART,), tuning_world=1, worlds=(2,), trials=2, sizes=SMALLEST)


def described(study: Study, out: Path, **not_run: list[str]) -> report.Study:
    return Described(title="t", command="c", seconds=60.0, workers=2).study(study, out, study.trials, not_run)


def read(study: Study, out: Path) -> MethodTable:
    [part] = described(study, out).parts
    return read_methods(part)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    with studies_here():
        outcomes = run_study("paper-tables", STUDY, out, 1, "holdfast study", lambda progress: None)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    return out


def test_every_method_gets_the_same_number_of_trials_and_the_best_is_kept(finished: Path) -> None:
    files = sorted((finished / "trials" / "knowledge").iterdir())
    assert [path.name for path in files] == ["mapping-0.json", "mapping-1.json"]
    first, second = map(Trial.read, files)
    assert first.settings == {}
    assert set(second.settings) == set(MAPPING.space)
    assert set(first.hazard) == {"none", "full-sgd-3e-1"}
    kept = STUDY.chosen(finished, PART, MAPPING)
    assert kept.rank == min(first.rank, second.rank)


def test_the_claim_models_are_built_with_the_settings_kept(finished: Path) -> None:
    card = Checkpoint(str(finished / "knowledge-2" / "models" / "mapping")).card
    kept = STUDY.chosen(finished, PART, MAPPING).settings
    held = {name: card["stages"][-1]["config"][name] for name in kept}
    assert held == kept
    plain = Checkpoint(str(finished / "knowledge-2" / "models" / "entropy")).card
    assert [stage["preset"] for stage in plain["stages"]] == ["random-mapping", "max-entropy"]
    assert plain["stages"][-1]["config"]["outer_steps"] == 2


def test_the_table_says_what_the_records_say(finished: Path) -> None:
    rows = read(STUDY, finished).rows
    assert {row.label for row in rows[:2]} == {"undefended", "never-exposed"}
    _, results = read_campaign(finished / "knowledge-2")
    scale = hazard_scale(results)
    for row in rows:
        [world] = row.worlds
        attacked = [result for result in results if result.model == row.label and result.attack != "none"]
        last = [
            max((r for r in result.records if r.evaluation in scale.evaluations), key=lambda r: r.step).value
            for result in attacked
        ]
        assert world.after == pytest.approx(fmean(last))
        assert world.attacks == 1
    [mapping] = [row for row in rows if row.label == "mapping"]
    card = Checkpoint(str(finished / "knowledge-2" / "models" / "mapping")).card
    with studies_here():  # whose pretraining is shorter
        pretraining = pretraining_flops("model", 2, SMALLEST)
        [mapping] = [row for row in read(STUDY, finished).rows if row.label == "mapping"]
    assert mapping.worlds[0].cost == pytest.approx(card["stages"][-1]["flops"] / pretraining)
    text = (finished / "tables.md").read_text(encoding="utf-8")
    assert f"{100 * mapping.worlds[0].after:.0f} ({100 * mapping.worlds[0].after:.0f})" in text
    assert "| tar | not run |" in text, "the full table has it"
    picture = (finished / "knowledge.svg").read_text(encoding="utf-8")
    assert "![Hazard and ability by safeguard](knowledge.svg)" in text
    for label in ("undefended", "never-exposed", "mapping", "entropy", "hazard questions answered right"):
        assert label in picture
    assert json.loads((finished / "tables.json").read_text(encoding="utf-8"))["knowledge"][0]["label"] == rows[0].label


def test_a_second_run_does_nothing_again_and_a_method_that_cannot_be_built_leaves_the_others_their_rows(
    finished: Path,
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*.jsonl")}
    stamps |= {path: path.stat().st_mtime_ns for path in (finished / "trials").rglob("*.json")}
    weights = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    broken = Method(label="broken", stages=("grad-diff",), settings={"learning_rate": 1e30, "outer_steps": 3}, size=1)
    study = replace(STUDY, parts=(replace(PART, methods=(*PART.methods, broken)),))
    with studies_here():
        outcomes = run_study("paper-tables", study, finished, 1, "holdfast study", lambda progress: None)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert any(outcome.error and "became" in outcome.error for outcome in outcomes)
    table = read(study, finished)
    [row] = [row for row in table.rows if row.label == "broken"]
    assert row.worlds[0].after is None
    assert "became" in row.worlds[0].failed
    values = described(study, finished, knowledge=["other"])
    text = report.markdown(values, [chapter(values, values.parts[0], table, "knowledge.svg")])
    assert "broken on world 2 could not be built" in text
    assert "| other | not run |" in text


def test_a_trial_that_ruins_ability_is_not_taken_where_another_does_not() -> None:
    gentle = Trial(key="a", settings={}, hazard={"none": 0.9}, ability=0.95, ability_of_original=1.0)
    ruinous = replace(gentle, hazard={"none": 0.1}, ability=0.5)
    void = Trial(key="c", settings={}, failed="the loss became nan")
    assert min(void, ruinous, gentle, key=lambda trial: trial.rank) is gentle
    assert min(void, ruinous, key=lambda trial: trial.rank) is ruinous


def test_trials_may_see_neither_claim_attacks_nor_claim_worlds() -> None:
    with pytest.raises(HoldfastError, match="may not see attacks of the claims: full-adamw-3e-3"):
        replace(PART, tuning_attacks=("full-adamw-3e-3",))
    with pytest.raises(HoldfastError, match="world 1 is the tuning world"):
        replace(STUDY, worlds=(1, 2))


def test_a_trial_is_drawn_from_the_methods_name_and_number_alone() -> None:
    assert MAPPING.trial(0) == {}
    assert MAPPING.trial(3) == replace(MAPPING, stages=("max-entropy",)).trial(3)
    combinations = math.prod(len(values) for values in MAPPING.space.values())
    assert len({json.dumps(MAPPING.trial(i)) for i in range(1, combinations + 1)}) == combinations
    preset = replace(
        MAPPING, space={"learning_rate": (pick("holdfast.safeguards", "random-mapping").learning_rate, 0.5)}
    )  # type: ignore[attr-defined]
    assert preset.trial(1) == {"learning_rate": 0.5}, "the preset's own settings are trial 0"


@pytest.mark.parametrize("name", [name for name in STUDIES if "red-team" not in name])
def test_a_shipped_study_is_sound(name: str) -> None:
    study = pick_study(name)
    assert isinstance(study, Study)
    for part in study.parts:
        assert len({method.stages for method in part.methods if method.role == "reference"}) == 1
        labels = [method.label for method in part.methods]
        assert len(set(labels)) == len(labels)
        for method in part.methods:
            trials = [json.dumps(method.trial(index)) for index in range(study.trials if method.space else 0)]
            assert len(set(trials)) == len(trials), f"{method.label} would try the same settings twice"
            last = pick("holdfast.safeguards", method.stages[-1])
            held = {field.name for field in fields(last)}
            assert set(method.space) | set(method.settings) | set(method.shorter) <= held
            for index in range(study.trials):
                method.built({**method.trial(index), **method.shorter})
            assert method.start is None or method.start in labels
        assert set(part.attacks) <= set(collect("holdfast.attacks"))
    assert study.core_seconds > 0


def test_every_safeguard_of_the_testbed_has_a_row_in_the_full_table() -> None:
    used = {stage for part in paper_tables.full().parts for method in part.methods for stage in method.stages}
    larger = ("-small", "-large")
    tiny = {name for name in collect("holdfast.safeguards") if not name.endswith(larger) and "paper" not in name}
    assert tiny - used == {"spec-def"}, "a negative control"


def test_what_the_short_table_leaves_out_is_named() -> None:
    left = paper_tables.not_run(paper_tables.short())
    assert "npo" in left["knowledge"]
    assert "npo-sam" not in left["knowledge"]
    assert "circuit-breakers-lat" in left["refusal"]
    assert "tar" not in left["knowledge"]


def test_of_a_table_some_rows_can_be_made_alone_in_the_folder_of_the_whole() -> None:
    whole, some = pick_study("paper-tables-full"), pick_study("paper-tables-full", ("mcu", "r2d2"))
    assert isinstance(whole, Study)
    assert isinstance(some, Study)
    assert [[method.label for method in part.methods] for part in some.parts] == [["mcu"], ["refusal-trained", "r2d2"]]
    assert (some.worlds, some.trials, some.tuning_world) == (whole.worlds, whole.trials, whole.tuning_world)
    for part, same in zip(some.parts, whole.parts, strict=True):
        assert all(method in same.methods for method in part.methods)
        assert replace(part, methods=same.methods) == same
        assert some.folder(Path("out"), part, 11) == whole.folder(Path("out"), same, 11)
    assert some.core_seconds < 0.3 * whole.core_seconds
    left = paper_tables.not_run(some)
    assert "tar" in left["knowledge"]
    assert "mcu" not in left["knowledge"]
    only = pick_study("paper-tables-full", ("cir",))
    assert isinstance(only, Study)
    assert [part.kind for part in only.parts] == ["knowledge"]


def test_a_row_along_an_attack_comes_with_its_reference() -> None:
    some = pick_study("real", ("tar",))
    assert isinstance(some, Study)
    assert [method.label for method in some.parts[0].methods] == ["random-mapping", "tar"]


@pytest.mark.parametrize(
    ("name", "only", "says"),
    [
        ("paper-tables", "mcuu", "no method 'mcuu'; "),
        ("claims", "tar", "leave --only out"),
        ("red-team", "tar", "--only"),
    ],
)
def test_rows_that_a_study_does_not_have_are_refused(name: str, only: str, says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        pick_study(name, (only,))


def test_an_unknown_study_is_named_with_its_neighbours() -> None:
    with pytest.raises(HoldfastError, match="there is no study 'paper'; "):
        pick_study("paper")


def test_a_folder_of_another_study_is_refused(finished: Path) -> None:
    with pytest.raises(HoldfastError, match="holds the study paper-tables"):
        run_study("ablations", STUDY, finished, 2, "holdfast study", lambda progress: None)


def test_a_study_on_a_released_model_trains_no_base_and_knows_no_never_exposed_model(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def placed(folder: Path, *_: object) -> None:
        shutil.copytree(tiny_testbed.folder, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "never_exposed")

    monkeypatch.setattr("holdfast.runs.study.world.make_real_testbed", placed)
    safeguard, column = Method(label="m", stages=("random-mapping",), role="reference", settings={"outer_steps": 2}), 2
    attack = replace(pick("holdfast.attacks", "full-adamw-1e-3"), max_steps=column)  # type: ignore[call-arg]
    part = Part(
        kind="real", methods=(safeguard,), suite="one", attacks=("short",), found={"short": attack}, milestones=(1, 2)
    )
    study = Study(
        title="Real", parts=(part,), worlds=(8, 9), seeds=(0, 1), tuning_world=7, options=Options(precision="mixed")
    )
    monkeypatch.setattr("holdfast.recipes.real.ALONG", (Along(attack="short", step=1), Along(attack="short", step=2)))
    with studies_here():
        outcomes = run_study("real", study, tmp_path / "out", 1, "holdfast study real", lambda progress: None)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    plan, results = read_campaign(tmp_path / "out" / "real-8")
    assert list(plan.models) == ["undefended", "m"]
    assert {result.identity["precision"] for result in results} == {"mixed"}
    assert {result.milestones[-1] for result in results if result.attack == "short"} == {2}
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "after 2 updates" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "never-exposed |" not in text
    assert study.core_seconds > 2 * 240


def test_the_demo_of_a_real_model_has_its_own_study_precision_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Study] = []
    monkeypatch.setattr(Study, "run", lambda study, *_: ran.append(study) or [])
    run_demo(tmp_path / "out", 3, 1, "holdfast demo", "real", Options(precision="mixed"))
    [study] = ran
    [part] = study.parts
    assert (part.kind, study.worlds, study.options.precision) == ("real", (3,), "mixed")
    campaign = study.campaign(tmp_path / "out", part, 3)
    assert [model.role for model in campaign.models] == ["undefended", "reference", "defended"]
    assert campaign.options.precision == "mixed"
    assert [method.built({})[-1][0] for method in part.methods] == ["random-mapping-small", "tar-small"]
    assert study.world(tmp_path / "out", part, 3).training() == {}
    with pytest.raises(HoldfastError, match=r"holds the demo \(seed 3, kind real\)"):
        run_demo(tmp_path / "out", 3, 1, "holdfast demo", "knowledge", Options())
