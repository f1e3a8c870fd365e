from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from holdfast.attacks.merge import Interpolate
from holdfast.cli.app import main
from holdfast.core.presets import describe
from holdfast.core.records import CampaignPlan, CellResult, cell_path, read_campaign
from holdfast.core.reproduction import FILE, Reproduction
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint, save_checkpoint
from holdfast.evals.multiple_choice import MultipleChoice
from holdfast.report.words import reproduction as words
from holdfast.runs.reproducible import write_reproduction
from holdfast.runs.reproduction import audit_again, known_runs, other_inputs, other_versions
from holdfast.stats.reproduction import Compared, compare
from holdfast.stats.summary import summarise
from tests.runs.test_audit import GENTLE, audit_of, run_here

if TYPE_CHECKING:
    from holdfast.campaign.cells import Campaign
    from tests.conftest import SmallTestbed


@pytest.fixture(scope="module")
def mine(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with other weights than the undefended one."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    return str(shutil.copytree(tiny_testbed.folder / "never_exposed", folder))


@pytest.fixture(scope="module")
def made(tiny_testbed: SmallTestbed, mine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit."""
    folder = tmp_path_factory.mktemp("first") / "audit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.campaign.run.run_jobs", run_here)
        audit = audit_of(tiny_testbed, mine, attacks={"gentle": GENTLE}, seeds=1, never_exposed=None)
        audit.run(folder, 1, suite="own", command=f"holdfast audit --model {audit.model}", title="Audit of mine")
    return folder


def outcome(first: Reproduction, folder: Path) -> Compared:
    plan, results = read_campaign(folder)
    return compare(first, plan, results, summarise(plan, results))


def again(first: Reproduction, testbed: SmallTestbed, mine: str, **changes: str) -> list[str]:
    """The inputs that are not as they were."""
    given = {"model": mine, "undefended": str(testbed.folder / "model"), **changes}
    audit = audit_again(first, domain=testbed.folder, **given)
    return [other.kind for other in other_inputs(first, audit)]


def test_the_file_names_content_and_no_path(made: Path, tiny_testbed: SmallTestbed, mine: str) -> None:
    text = (made / FILE).read_text(encoding="utf-8")
    assert str(tiny_testbed.folder) not in text
    assert str(made) not in text
    assert str(Path.home()) not in text
    first = Reproduction.read(made / FILE)
    plan, results = read_campaign(made)
    assert {model.label: model.role for model in first.models} == plan.models
    assert first.attacks == {"gentle": next(r.attack_config for r in results if r.attack == "gentle")}
    assert {run.cell for run in first.runs} == set(plan.cells)
    assert first.command.startswith("holdfast reproduce reproduce.json --undefended UNDEFENDED --model MODEL")
    assert first.data
    assert "hazard" in first.evaluations


def test_the_same_inputs_are_taken_and_others_are_named(made: Path, tiny_testbed: SmallTestbed, mine: str) -> None:
    first = Reproduction.read(made / FILE)
    assert again(first, tiny_testbed, mine) == []
    audit = audit_again(
        first, model=mine, undefended=str(tiny_testbed.folder / "model"),
        domain=tiny_testbed.folder,
    )  # fmt: skip
    assert known_runs(first, audit) == len(first.runs)
    assert other_versions(first) == {}
    assert again(first, tiny_testbed, mine, model=str(tiny_testbed.folder / "model")) == ["model"]
    assert again(replace(first, data=dict.fromkeys(first.data, "0")), tiny_testbed, mine) == ["rows"] * len(first.data)
    assert again(replace(first, max_length=5), tiny_testbed, mine) == ["max_length"]
    assert again(replace(first, protocol=1), tiny_testbed, mine) == ["protocol"]
    others = {"hazard": [{"class": "MultipleChoice"}, "0"], "gone": [{}, "1"]}
    assert again(replace(first, evaluations=others), tiny_testbed, mine) == ["questions", "questions"]
    named = MultipleChoice(questions="hazard", sample=3)
    more = {"extra": [describe(named), named.content(tiny_testbed.domain)]}
    assert again(replace(first, evaluations={**first.evaluations, **more}), tiny_testbed, mine) == []
    models = [replace(model, tokenizer="0") for model in first.models]
    assert again(replace(first, models=models), tiny_testbed, mine) == ["tokenizer", "tokenizer"]
    assert other_versions(replace(first, environments=[{"torch": "1.0"}]))["torch"][0] == "1.0"


def test_a_control_that_is_missing_or_too_many_is_refused(made: Path, tiny_testbed: SmallTestbed, mine: str) -> None:
    first = Reproduction.read(made / FILE)
    with pytest.raises(HoldfastError, match="--never-exposed: the first audit has no such model; leave it out"):
        again(first, tiny_testbed, mine, never_exposed="x")
    more = replace(first, models=[*first.models, replace(first.models[0], label="shallow", role="reference")])
    with pytest.raises(HoldfastError, match="--reference: the first audit has one; give its folder"):
        again(more, tiny_testbed, mine)
    with pytest.raises(HoldfastError, match="there is no class 'Gone' in this holdfast"):
        again(replace(first, attacks={"gentle": {"class": "Gone"}}), tiny_testbed, mine)
    with pytest.raises(HoldfastError, match="made in pure bfloat16, which loses small updates"):
        again(replace(first, precision="bfloat16"), tiny_testbed, mine)


def changed(folder: Path, out: Path, shift: float, status: str = "finished") -> Path:
    """The same audit with the hazard of the attacked runs elsewhere."""
    shutil.copytree(folder, out)
    for path in (out / "cells").iterdir():
        result = CellResult.read(path)
        if result.attack == "gentle" and result.model == "mine":
            records = [
                replace(r, value=abs(r.value - shift)) if r.step and r.measures == "hazard" else r
                for r in result.records
            ]
            replace(result, records=records, status=status).write(cell_path(out, result.cell))  # type: ignore[arg-type]
    return out


def test_equal_values_reproduce_an_audit(made: Path) -> None:
    first = Reproduction.read(made / FILE)
    same = outcome(first, made)
    assert (same.agrees, same.same_place, same.equal) == (True, True, len(first.runs))
    assert words.compared(same)[-1] == "The audit was reproduced."
    assert same.figures


def test_on_the_same_machine_a_last_digit_is_a_disagreement_and_elsewhere_it_is_none(
    made: Path, tmp_path: Path
) -> None:
    first, near = Reproduction.read(made / FILE), changed(made, tmp_path / "near", 1e-9)
    assert not outcome(first, near).agrees
    elsewhere = outcome(replace(first, environments=[{"processor": "another"}]), near)
    assert elsewhere.agrees
    assert elsewhere.equal == len(first.runs) - 1


def test_a_figure_beyond_the_error_is_a_disagreement_anywhere(made: Path, tmp_path: Path) -> None:
    first = replace(Reproduction.read(made / FILE), environments=[{"processor": "another"}])
    far = outcome(first, changed(made, tmp_path / "far", -0.6))
    assert not far.agrees
    assert [figure.attack for figure in far.figures if not figure.agrees]
    assert "apart" in " ".join(words.compared(far))
    gone = outcome(first, changed(made, tmp_path / "gone", 0.0, "diverged"))
    assert [run.attack for run in gone.missing] == ["gentle"]
    assert not gone.agrees


def test_a_file_that_is_something_else_is_one_sentence(made: Path, tmp_path: Path) -> None:
    path = tmp_path / FILE
    with pytest.raises(HoldfastError, match="cannot be read"):
        Reproduction.read(path)
    table = json.loads((made / FILE).read_text())
    for broken, said in (
        ("[]", "is no reproduce.json"),
        ('{"schema": 9', "is no"),
        (json.dumps({**table, "schema": 9}), "schema 9"),
    ):
        path.write_text(broken)
        with pytest.raises(HoldfastError, match=said):
            Reproduction.read(path)


def test_the_command_makes_an_audit_again(
    made: Path,
    tiny_testbed: SmallTestbed,
    mine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def foretold(console: object, campaign: Campaign) -> int:
        raise HoldfastError(f"asked of {campaign.attacks[0][0]}")

    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    file, out = str(made / FILE), str(tmp_path / "again")
    assert main(["reproduce", file, "--plan"]) == 0
    assert "--undefended UNDEFENDED" in capsys.readouterr().out
    assert main(["reproduce", file]) == 2
    inputs = [
        "--model", mine, "--undefended", str(tiny_testbed.folder / "model"),
        "--domain", str(tiny_testbed.folder),
    ]  # fmt: skip
    assert main(["reproduce", file, *inputs, "--plan"]) == 0
    assert "have the identity" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr("holdfast.cli.check.memory_of_worker", foretold)
        elsewhere = ["--out", out, "--executor", "slurm", "--cluster", "memory=auto"]
        assert main(["reproduce", file, *inputs, *elsewhere]) == 2
    assert "asked of gentle" in capsys.readouterr().err
    assert main(["reproduce", file, *inputs, "--out", out]) == 0
    assert "The audit was reproduced." in capsys.readouterr().out
    assert main(["reproduce", file, "--model", inputs[3], *inputs[2:], "--out", out]) == 2
    assert "this would be another audit: the weights of mine" in capsys.readouterr().err


def test_a_sibling_stands_in_the_file_and_has_to_be_given(
    made: Path, tiny_testbed: SmallTestbed, mine: str, tmp_path: Path
) -> None:
    folder, undefended = tmp_path / "audit", str(tiny_testbed.folder / "model")
    shutil.copytree(made, folder)
    plan = CampaignPlan.read(folder)
    original = Checkpoint(undefended).digest
    sibling = Checkpoint(mine).digest
    replace(plan, details={**plan.details, "sibling": sibling, "base": original}).write(folder)
    write_reproduction(folder)
    first = Reproduction.read(folder / FILE)
    assert first.sibling == sibling
    assert "--sibling SIBLING --domain DOMAIN" in first.command
    assert f"a sibling of the original model ({sibling[:12]})" in " ".join(words.plan(first))
    assert again(first, tiny_testbed, mine, sibling=mine) == []
    assert again(first, tiny_testbed, mine, sibling=undefended) == ["sibling"]
    with pytest.raises(HoldfastError, match="--sibling: the first audit has one; give its folder"):
        again(first, tiny_testbed, mine)
    with pytest.raises(HoldfastError, match="--sibling: the first audit has no such model; leave it out"):
        again(Reproduction.read(made / FILE), tiny_testbed, mine, sibling=mine)


@pytest.mark.slow
def test_an_audit_in_which_the_attacker_held_a_sibling_is_made_again_with_that_sibling(
    tiny_testbed: SmallTestbed,
    mine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    related = tmp_path / "related"
    model, tokenizer = tiny_testbed.model.load_both()
    model.get_parameter("model.norm.weight").data.mul_(1.1)
    save_checkpoint(model, tokenizer, related, {}, "# A sibling\n")
    audit = audit_of(
        tiny_testbed, mine, attacks={"merge": Interpolate()}, canonical="merge", seeds=1, never_exposed=None
    )
    replace(audit, sibling=str(related)).run(tmp_path / "first", 1)
    file, out = str(tmp_path / "first" / FILE), str(tmp_path / "again")
    assert str(related) not in Path(file).read_text()
    assert main(["reproduce", file, "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The attacker holds a sibling" in said
    assert "--sibling SIBLING" in said
    inputs = [
        "--model", mine, "--undefended", str(tiny_testbed.folder / "model"), "--domain", str(tiny_testbed.folder),
        "--out", out,
    ]  # fmt: skip
    assert main(["reproduce", file, *inputs]) == 2
    assert "--sibling: the first audit has one; give its folder" in capsys.readouterr().err
    assert main(["reproduce", file, *inputs, "--sibling", inputs[3]]) == 2
    assert "the weights of the sibling" in " ".join(capsys.readouterr().err.split())
    assert main(["reproduce", file, *inputs, "--sibling", str(related)]) == 0
    assert "The audit was reproduced." in capsys.readouterr().out
