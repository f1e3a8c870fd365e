"""What is noticed about the data before a campaign runs, and what stops it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.examining import examine, look_at
from holdfast.campaign.milestones import prepared
from holdfast.campaign.run import check_campaign, write_plan
from holdfast.cli.app import main
from holdfast.core.domain import Domain
from holdfast.core.findings import read_findings
from holdfast.core.presets import pick
from holdfast.core.records import CampaignPlan
from holdfast.core.types import HoldfastError
from holdfast.evals.heldout_loss import HeldoutLoss
from holdfast.runs.search.search import Search
from tests.conftest import SmallTestbed

Changed = Callable[..., Path]


@pytest.fixture
def changed(tiny_testbed: SmallTestbed, tmp_path: Path) -> Changed:
    """The tiny testbed with other rows in some of its files."""

    def make(files: Mapping[str, Sequence[Mapping[str, Any]]], max_length: int | None = None) -> Path:
        folder = tmp_path / "domain"
        shutil.copytree(tiny_testbed.folder, folder, ignore=shutil.ignore_patterns("model", "never_exposed"))
        for name, rows in files.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if max_length is not None:
            toml = (folder / "domain.toml").read_text()
            old = next(line for line in toml.splitlines() if line.startswith("max_length"))
            (folder / "domain.toml").write_text(toml.replace(old, f"max_length = {max_length}"))
        return folder

    return make


def campaign(testbed: SmallTestbed, domain: Path, attack: str = "full-adamw-1e-3") -> Campaign:
    return Campaign(
        models=(Model(label="tar", path=testbed.model.path, role="defended"),),
        domain=domain,
        attacks=((attack, pick("holdfast.attacks", attack)),),
        seeds=(0,),
    )


def questions(testbed: SmallTestbed) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (testbed.folder / "questions" / "hazard.jsonl").read_text().splitlines()]


def test_an_attacker_who_holds_the_answers_is_in_the_plan_and_on_the_page(
    tiny_testbed: SmallTestbed, changed: Changed, tmp_path: Path
) -> None:
    asked = questions(tiny_testbed)
    told = [{"text": question["prompt"] + question["choices"][question["answer"]]} for question in asked]
    run = campaign(tiny_testbed, changed({"data/attack": told}))
    write_plan(run, tmp_path / "plan", [cell.id for cell in run.cells()], title="x", suite="x", command="")
    findings = read_findings(CampaignPlan.read(tmp_path / "plan").details)
    assert findings is not None
    [given] = [o for o in findings.overlaps if (o.one, o.other) == ("questions hazard", "attack")]
    assert (given.same, given.of) == (len(asked), len(asked))


def test_the_testbed_itself_has_nothing_to_object_to(
    tiny_testbed: SmallTestbed, tiny_refusal_testbed: SmallTestbed
) -> None:
    from holdfast.report.words.data import objections

    for testbed in (tiny_testbed, tiny_refusal_testbed):
        assert objections(examine(campaign(testbed, testbed.folder))) == []


def test_rows_that_are_read_and_have_nothing_to_learn_stop_a_campaign_before_it_begins(
    tiny_testbed: SmallTestbed, changed: Changed
) -> None:
    pairs = [{"prompt": "the river of " * 30, "chosen": " arn", "rejected": " bal"}] * 8
    domain = changed({"data/attack": pairs})
    with pytest.raises(HoldfastError, match=r"8 of 8 rows of attack have nothing left to learn.*raise max_length"):
        check_campaign(campaign(tiny_testbed, domain))
    check_campaign(campaign(tiny_testbed, domain, "full-adamw-1e-3-ood"))  # which reads others


def test_an_evaluation_is_prepared_anew_for_another_length(tiny_testbed: SmallTestbed, changed: Changed) -> None:
    """Two domains may differ in nothing else, and one process may measure in both."""
    model, tokenizer = tiny_testbed.model.load_both()
    shorter = Domain.open(changed({}, max_length=4))
    scores = [
        prepared(HeldoutLoss(role="hazard_heldout"), domain, tokenizer, "tokenizer")(model)
        for domain in (tiny_testbed.domain, shorter)
    ]
    assert scores[0] != scores[1]


def test_a_search_stops_before_its_first_trial_too(tiny_testbed: SmallTestbed, changed: Changed) -> None:
    pairs = [{"prompt": "the river of " * 30, "chosen": " arn", "rejected": " bal"}] * 8
    search = Search(model=tiny_testbed.model.path, domain=changed({"data/attack": pairs}), families=("full",))
    with pytest.raises(HoldfastError, match="8 of 8 rows of attack have nothing left to learn"):
        search.check()


def test_rows_that_nobody_reads_are_looked_at_again_when_they_have_changed(
    tiny_testbed: SmallTestbed, changed: Changed
) -> None:
    folder = changed({})
    assert look_at(Domain.open(folder), [tiny_testbed.model], ["attack"]).overlaps
    shutil.copy(folder / "data" / "attack.jsonl", folder / "data" / "forget.jsonl")
    found = look_at(Domain.open(folder), [tiny_testbed.model], ["attack"]).overlaps
    assert {"forget", "attack"} in [{overlap.one, overlap.other} for overlap in found]


def test_cut_rows_are_counted_by_role(tiny_testbed: SmallTestbed, changed: Changed) -> None:
    texts = [{"text": "the river " * size} for size in (2, 3, 20, 30)]
    domain = Domain.open(changed({"data/attack": texts}))
    [cut] = look_at(domain, [tiny_testbed.model], ["attack"]).cuts
    assert (cut.role, cut.rows, cut.cut, cut.empty) == ("attack", 4, 2, 0)
    assert look_at(domain, [tiny_testbed.model], []).cuts == []  # nobody reads them


def test_options_without_a_blank_are_noticed_and_the_remedy_makes_them_the_same_questions(
    tiny_testbed: SmallTestbed, changed: Changed
) -> None:
    asked = questions(tiny_testbed)
    folder = changed({"questions/hazard": [{**q, "choices": [c.strip() for c in q["choices"]]} for q in asked]})
    bare = Domain.open(folder)
    [noticed] = look_at(bare, [tiny_testbed.model], []).run_together
    assert (noticed.questions, noticed.count, noticed.of) == ("hazard", len(asked), len(asked))
    toml = (folder / "domain.toml").read_text()
    (folder / "domain.toml").write_text(toml.replace("[questions.hazard]", '[questions.hazard]\njoin = " "'))
    mended = Domain.open(folder)
    assert mended.questions("hazard").digest == tiny_testbed.domain.questions("hazard").digest
    assert look_at(mended, [tiny_testbed.model], []).run_together == []


def test_a_safeguard_says_which_rows_it_cut_and_keeps_it_in_the_card(
    tiny_testbed: SmallTestbed, changed: Changed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = changed({"data/forget": [{"text": "the river " * size} for size in (2, 3, 20, 30)]})
    out = tmp_path / "out"
    arguments = ["safeguard", "random-mapping", "--model", tiny_testbed.model.path, "--domain", str(domain)]
    assert main([*arguments, "--out", str(out), "--set", "random-mapping.outer_steps=1"]) == 0
    assert "2 of 4 rows of forget are longer than max_length" in capsys.readouterr().out
    assert json.loads((out / "holdfast.json").read_text())["cuts"] == [
        {"role": "forget", "rows": 4, "cut": 2, "empty": 0}
    ]
