"""holdfast from Python: values with few arguments, one call to run each, and results that show themselves."""

from __future__ import annotations

import importlib.resources
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import holdfast
from holdfast import Audit, Campaign, Model, Recipe, Results, Search, build_report, evaluate, pick, run
from holdfast.api import watching
from holdfast.core.presets import preset_of
from holdfast.core.shown import frame
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Progress
from holdfast.runs.search.attacker import Found
from holdfast.runs.search.search import usable_families
from holdfast.runs.suites import SUITES
from tests.cli.test_cli import run_here
from tests.conftest import SmallTestbed
from tests.report.synthetic import audited, write

SHORT = {"random-mapping": replace(pick("holdfast.safeguards", "random-mapping"), outer_steps=2)}
ATTACK = replace(pick("holdfast.attacks", "full-adamw-1e-3"), max_steps=2)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)


def test_stages_attacks_and_results(
    tiny_testbed: SmallTestbed, tmp_path: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths are strings; nothing is printed where nobody watches."""
    domain, model = str(tiny_testbed.folder), str(tiny_testbed.folder / "model")
    recipe = Recipe(model=model, domain=domain, stages=SHORT.items())
    made = run(recipe, str(tmp_path / "safe"))
    assert preset_of(made.card["stages"][0]["preset"]) == "random-mapping"
    assert run(recipe, tmp_path / "safe") == made, "what is there is not made again"
    campaign = Campaign(models=[Model(path=made.path)], domain=domain, attacks={"short": ATTACK})
    assert (campaign.models[0].label, campaign.models[0].role, campaign.seeds) == ("safe", "defended", (0,))
    results = run(campaign, str(tmp_path / "attacked"), workers=1)
    assert (results.failed, results.plan.title) == ([], "Attacks on safe")
    assert results.plan.suite.startswith("1 attack (")
    table = results.to_pandas()
    assert len(table) == sum(len(cell.records) for cell in results.cells)
    assert {"model", "attack", "step", "value"} <= set(table.columns)
    assert results.report().html == tmp_path / "attacked" / "report.html"
    assert capsys.readouterr() == ("", "")


def test_an_audit_needs_three_paths(tiny_testbed: SmallTestbed) -> None:
    audit = Audit(model="models/tar", undefended=Path("models/chat"), domain="my-domain")
    assert list(audit.attacks) == list(SUITES["quick-2"].attacks)
    assert (audit.canonical, audit.seeds, audit.called) == ("full-adamw-1e-3", 5, "quick-2 (version 2)")
    assert (audit.undefended, audit.domain, audit.searched) == ("models/chat", Path("my-domain"), [])
    assert repr(audit) == "Audit(tar; quick-2 (version 2); 5 seeds)"
    own = Audit(model="m", undefended="u", domain="d", attacks=["lora-r4-adamw-5e-3", ("mine", ATTACK)])
    assert (list(own.attacks), own.canonical) == (["lora-r4-adamw-5e-3", "mine"], "lora-r4-adamw-5e-3")
    assert own.called.startswith("2 attacks (")
    assert own.called != replace(own, attacks=["full-adamw-1e-3", "lora-r4-adamw-5e-3"], canonical="").called
    assert replace(own, seeds=3).attacks == own.attacks
    found = Audit(model="m", undefended="u", domain="d", suite="adaptive")
    assert "FineTune" in found.searched, "attacks that a search chose are not blind"
    with pytest.raises(HoldfastError, match="there is no suite 'quik'"):
        Audit(model="m", undefended="u", domain="d", suite="quik")


def test_an_audit_is_run_with_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def run_audit(audit: Audit, out: Path, workers: int, **how: Any) -> None:
        ran.append((workers, *how))
        write(out, *audited(2))

    monkeypatch.setattr(Audit, "run", run_audit)
    results = run(Audit(model="m", undefended="u", domain="d"), str(tmp_path / "a"), workers=3)
    assert ran == [(3, "on_progress")]
    assert list(results.verdicts) == ["tar"]
    assert len(repr(results)) < 150
    assert "tar" in repr(results)


def test_a_search_needs_a_model_its_original_and_a_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(model=Path("models/tar"), base="models/chat", domain="my-domain")
    assert search.families == usable_families()
    assert (search.model, search.domain) == ("models/tar", Path("my-domain"))
    assert len(repr(search)) < 80
    called: dict[str, Any] = {}
    monkeypatch.setattr("holdfast.api.run.search_and_confirm", lambda *given, **how: called.update(how, given=given))
    run(search, "runs/search", workers=4)
    assert called["given"] == (search, Path("runs/search"))
    assert called["workers"] == 4
    with pytest.raises(HoldfastError, match="give base="):
        holdfast.search_and_confirm(Search(model="m", domain="d"), tmp_path)


def test_results_show_themselves_and_hide_no_code(tmp_path: Path) -> None:
    plan, cells = audited(5)
    evil = "<script>alert(1)</script>"
    renamed = [replace(cell, model=evil if cell.model == "tar" else cell.model) for cell in cells]
    models = {evil if label == "tar" else label: role for label, role in plan.models.items()}
    folder = write(tmp_path / "audit", replace(plan, models=models), renamed)
    for shown in (Results(str(folder)), build_report(str(folder), str(tmp_path / "r.html"))):
        page = shown._repr_html_()
        assert "<script>" not in page
        assert "&lt;script&gt;" in page
        assert "<table>" in page
        assert len(repr(shown)) < 200


def test_a_found_attack_shows_itself() -> None:
    from holdfast.core.presets import describe
    from holdfast.runs.search.trial import Trial

    trial = Trial(
        key="k", family="full<b>", settings={}, attack=describe(ATTACK), hazard=0.5, ability=0.9, feasible=True
    )
    claim: Any = SimpleNamespace(hazard=0.4, ability=0.8)
    found = Found(folder=Path(), trials=[trial], best={"full<b>": trial}, winner=trial, confirmed=claim, description={})
    assert "hazard 40 %, ability 80 %" in repr(found)
    assert "full&lt;b&gt;" in found._repr_html_()
    assert list(found.to_pandas()["hazard"]) == [0.5]


def test_scores_are_found_by_name(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.core.types import Score
    from holdfast.runs.evaluate import Evaluated

    score = Score(metric="accuracy", value=0.25, stderr=0.1, n=4, chance=0.25)
    monkeypatch.setattr(
        "holdfast.runs.evaluate.evaluate",
        lambda *_: [Evaluated(evaluation="hazard", measures="hazard", scores=(score,))],
    )
    scores = evaluate("models/chat", "my-domain")
    assert scores.score("hazard") is score
    assert repr(scores) == "Scores(models/chat: hazard 0.25)"
    assert "<td>0.25</td>" in scores._repr_html_()
    assert scores.to_pandas().to_dict("records")[0]["chance"] == 0.25
    with pytest.raises(KeyError):
        scores.score("related")


def test_a_frame_without_pandas_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(HoldfastError, match="a data frame needs pandas; install it with: pip install pandas"):
        frame([])


def test_a_notebook_is_shown_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    module = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1), display=None)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=lambda _, display_id: handle))
    with watching.watching_jobs("a <b>", True) as on_progress:
        on_progress(Progress(running={"x": 0.5}, waiting=3, share=0.25, seconds=10))
    assert "a &lt;b&gt;: 25%, 0 done, 1 running, 3 waiting, about 0:30 left" in shown[0]
    assert shown[-1] == ""
    with watching.watching_jobs("a", False) as on_progress:
        on_progress(Progress())
    assert len(shown) == 2
    with watching.watching_steps("a", True) as on_step:
        on_step(1, 4)
    assert "step 1 of 4" in shown[2]


def test_a_terminal_is_shown_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with watching.watching_jobs("a title", True) as on_progress:
        on_progress(Progress(running={"x": 0.5}, share=0.25))
    said = capsys.readouterr()
    assert said.out == ""
    with watching.watching_jobs("a title", False) as on_progress:
        on_progress(Progress(running={"x": 0.5}, share=0.25))
    assert capsys.readouterr().err == ""


def test_types_are_shipped() -> None:
    assert (importlib.resources.files("holdfast") / "py.typed").is_file()


def test_a_study_gives_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_study(name: str, study: Any, out: Path, workers: int, command: str, on_progress: Any) -> None:
        (out / "tables.json").write_text(json.dumps({"study": name, "workers": workers}), encoding="utf-8")

    monkeypatch.setattr("holdfast.recipes.run.run_study", run_study)
    assert holdfast.study("ablations", str(tmp_path), workers=3) == {"study": "ablations", "workers": 3}
    with pytest.raises(HoldfastError, match="there is no study"):
        holdfast.study("ablation", tmp_path)
