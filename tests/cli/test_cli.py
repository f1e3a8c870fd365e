"""The command line, in-process through `main`: every verb does its work, says what it wrote and what to do next."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console
from transformers import AutoModelForCausalLM

from holdfast.attacks.finetune import FineTune
from holdfast.cli.app import app, main
from holdfast.cli.terminal import say_next
from holdfast.core.files import file_digest
from holdfast.core.outside import load_plugins
from holdfast.core.presets import collect
from holdfast.core.records import read_campaign
from holdfast.core.types import HoldfastError
from holdfast.jobs.graph import Graph, Job, Outcome, Progress
from holdfast.runs.suites import SUITES
from holdfast.testbed.models import PRETRAINING
from holdfast.testbed.world import Sizes
from tests.cli.test_hostile_text import VERBS as VERBS_WORDS
from tests.cli.test_hostile_text import stubbed
from tests.conftest import SMALL, SmallTestbed
from tests.outside import write_plugin

VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHORT = ("--set", "random-mapping.outer_steps=3")


def run_here(
    jobs: Sequence[Job],
    workers: int,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[Job, Outcome]:
    """`run_jobs` without its processes, each of which takes seconds to start; test_jobs.py and the tour have those."""
    graph = Graph(jobs, on_outcome)
    while (job := graph.start()) is not None:
        try:
            outcome = Outcome(job=job, result=job.call(**job.arguments, on_step=lambda done, total: None))
        except HoldfastError as error:
            outcome = Outcome(job=job, error=str(error))
        except Exception as error:
            outcome = Outcome(job=job, error=f"{type(error).__name__}: {error}")
        graph.end(outcome)
    return graph.outcomes


@contextmanager
def studies_here() -> Iterator[None]:
    """Studies in this process, on models that are trained little: for what does not hang on what they know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.runs.study.study.run_jobs", run_here)
        patch.setattr("holdfast.runs.study.red_team.run_jobs", run_here)
        patch.setitem(PRETRAINING, "knowledge", replace(PRETRAINING["knowledge"], passes=4.0))
        safeguards: Any = collect("holdfast.safeguards")
        patch.setitem(safeguards, "random-mapping", replace(safeguards["random-mapping"], outer_steps=20))
        yield


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that succeeds; what it printed."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def next_command(printed: str) -> list[str]:
    """The words of the suggested command, which parses."""
    last = printed.rstrip().splitlines()[-1]
    assert last.startswith("Next: holdfast "), last
    program, verb, *words = shlex.split(last.removeprefix("Next: "))
    assert program == "holdfast"
    VERBS[verb].make_context(verb, list(words))
    return [verb, *words]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = " ".join(run(capsys, verb, "--help").split())
    assert "Example" in printed
    example = VERBS[verb].epilog.partition(":")[2].partition("·")[0].strip()
    program, named, *words = shlex.split(example)
    assert (program, named) == ("holdfast", verb)
    VERBS[verb].make_context(verb, words)


def test_help_needs_no_torch() -> None:
    program = (
        "import sys; from holdfast.cli.app import main\n"
        "for words in (['--help'], ['audit', '--help'], ['list'], ['list', '--json']): assert main(words) == 0\n"
        "assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_next_command_is_one_that_this_shell_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ".venv" / "bin" / "holdfast"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    say_next(Console(), "holdfast list tar")
    assert capsys.readouterr().out == "Next: .venv/bin/holdfast list tar\n"
    monkeypatch.setenv("PATH", str(program.parent))
    say_next(Console(), "holdfast list tar")
    assert capsys.readouterr().out == "Next: holdfast list tar\n"


def test_list_shows_everything_there_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    whole = run(capsys, "list")
    for kind, package in (("attacks", "attacks"), ("safeguards", "safeguards"), ("evaluations", "evals")):
        part = run(capsys, "list", kind)
        for name in collect(f"holdfast.{package}"):
            assert name in part.split()
            assert name in whole.split()
    assert "Random Mapping, TAR's initial safeguard" in whole, "a family says what it is"
    assert all(name in run(capsys, "list", "suites") for name in SUITES)
    shown = run(capsys, "list", "tar")
    assert re.search(r"inner_steps +24 +K, updates in a trajectory", shown)


def test_the_tour(
    tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safeguard, evaluate, attack, audit, report: each makes what the next reads, and a second run makes nothing twice."""
    model, domain = tiny_testbed.folder / "model", tiny_testbed.folder
    shallow, tar = tmp_path / "shallow", tmp_path / "tar"
    made = ("safeguard", "random-mapping", "--model", model, "--domain", domain, "--out", shallow, *SHORT)
    printed = run(capsys, *made)
    assert f"The safeguarded model is in {shallow}\n" in printed
    assert re.search(r"^Mapping loss 0\.\d+ → 0\.\d+, retain loss .* and weights moved by \d", printed, re.MULTILINE)
    assert re.search(
        r"^Hazard \d+ % → \d+ % \(\d+ selection questions, on which nothing is claimed", printed, re.MULTILINE
    )
    assert next_command(printed)[0] == "audit"
    before = (shallow / "model.safetensors").stat()
    assert "(it was there already)" in run(capsys, *made)
    assert (shallow / "model.safetensors").stat() == before
    run(
        capsys, "safeguard", "random-mapping", "tar", "--model", model, "--domain", domain, "--out", tar, *SHORT,
        "--set", "tar.outer_steps=2", "--set", "tar.inner_steps=4", "--seed", 0,
    )  # fmt: skip
    card = json.loads((tar / "holdfast.json").read_text(encoding="utf-8"))
    changed = ["random-mapping+outer_steps=3", "tar+outer_steps=2+inner_steps=4"]
    assert [stage["preset"] for stage in card["stages"]] == changed
    assert card["stages"][1]["config"]["inner_steps"] == 4
    AutoModelForCausalLM.from_pretrained(tar)

    scores = tmp_path / "scores.json"
    printed = run(capsys, "evaluate", "--model", tar, "--domain", domain, "--out", scores)
    assert "benign_outside_retain" in printed  # whole, on 80 columns
    assert next_command(printed)[0] == "attack"
    named = {score["evaluation"] for score in json.loads(scores.read_text(encoding="utf-8"))}
    assert named >= {
        "hazard",
        "hazard_selection",
        "benign_outside_retain",
        "degeneracy",
        "benign-learning",
        "hazard-loss",
    }

    one = tmp_path / "one"
    with monkeypatch.context() as patch:
        patch.setattr("holdfast.campaign.run.run_jobs", run_here)
        printed = run(
            capsys, "attack", "full-adamw-1e-3", "--model", tar, "--domain", domain, "--out", one, "--seed", 1,
            "--milestones", "0,2", "--set", "full-adamw-1e-3.max_steps=5", "--precision", "float32", "--trust-remote-code",
            "--matmul", "onednn", "--profile",
        )  # fmt: skip
    assert len(list((one / "profile").glob("attack-*.json.gz"))) == 1
    suggested = next_command(printed)
    carried = ["--precision", "float32", "--matmul", "onednn", "--trust-remote-code"]
    assert suggested[-5:] == carried, "what the model needs is carried on"
    assert suggested[0] == "audit"
    assert suggested[suggested.index("--undefended") + 1] == str(model)
    plan, results = read_campaign(one)
    [attacked] = [result for result in results if result.attack != "none"]
    assert attacked.attack == plan.suite == plan.attacks[0] == "full-adamw-1e-3+max_steps=5"
    assert attacked.milestones == [0, 2, 5]
    assert attacked.seed == 1

    audit = tmp_path / "audit"
    steps = [text for name in SUITES["demo-2"].attacks for text in ("--set", f"{name}.max_steps=5")]
    audited = (
        "audit", "--model", tar, "--undefended", model, "--reference", shallow,
        "--never-exposed", tiny_testbed.folder / "never_exposed", "--domain", domain, "--suite", "demo-2", "--seeds", 1,
        "--workers", 1, "--out", audit, *steps,
    )  # fmt: skip
    printed = run(capsys, *audited)
    assert next_command(printed)[0] == "card"
    assert f"The report is {audit / 'report.html'}\n" in printed
    table = [line for line in printed.splitlines() if "→" in line]
    assert [line.split()[0] for line in table] == ["undefended", "shallow", "tar", "never-exposed", "destroyed"]
    assert max(map(len, table)) <= 80
    plan, results = read_campaign(audit)
    assert list(plan.models) == ["undefended", "shallow", "tar", "never-exposed", "destroyed"]
    assert re.fullmatch(
        rf"demo-2 \(version 2, {len(SUITES['demo-2'].attacks)} attacks changed: [0-9a-f]{{6}}\)", plan.suite
    )
    assert plan.attacks == [f"{name}+max_steps=5" for name in SUITES["demo-2"].attacks]
    assert plan.details["canonical"] == "full-adamw-1e-3+max_steps=5"
    # Every attack on three models; on the undefended and the destroyed one the canonical and the worst, which may be one.
    # Four models are probed four times each.
    assert len(results) in (5 + 4 * 4 + 3 * 4 + 2 * 1, 5 + 4 * 4 + 3 * 4 + 2 * 2)
    assert {result.status for result in results} == {"finished"}

    files = {path: path.stat().st_mtime_ns for path in (audit / "cells").iterdir()}
    lost = sorted(files)[0]
    content = json.loads(lost.read_text(encoding="utf-8").splitlines()[0])
    lost.unlink()
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    stated = tmp_path / "stated.toml"
    stated.write_text('use = "a chat assistant"\n', encoding="utf-8")
    told = json.loads(run(capsys, *audited, "--release", stated, "--json"))
    assert (audit / "release.toml").read_text() == stated.read_text()
    assert "a chat assistant" in (audit / "report.html").read_text()
    assert [verdict["model"] for verdict in told["verdicts"]] == ["tar"]
    assert told["failed"] == []
    assert {path for path in files if path.stat().st_mtime_ns != files[path]} == {lost}
    again = json.loads(lost.read_text(encoding="utf-8").splitlines()[0])
    varying = ("seconds", "evaluation_seconds", "peak_memory")
    assert {**again, **dict.fromkeys(varying)} == {**content, **dict.fromkeys(varying)}

    page = tmp_path / "both.html"
    assert f"The report is {page}" in run(capsys, "report", audit, one, "--out", page)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?(https?:)?//|@import""", text)
    assert page.with_suffix(".md").is_file()
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))


def test_an_attack_that_failed_ends_in_a_sentence_and_another_status(
    tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model as it was is measured all the same, so that a report is written."""
    words = ("--model", tiny_testbed.folder / "model", "--domain", tiny_testbed.folder, "--out", tmp_path / "out")
    attack = [str(word) for word in ("attack", "full-adamw-1e-3", *words, "--set", "full-adamw-1e-3.max_steps=2")]

    def broken(self: FineTune, *arguments: Any) -> Any:
        raise HoldfastError("the attack broke")

    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    with monkeypatch.context() as patch:
        patch.setattr(FineTune, "steps", broken)
        assert main(attack) == 2
    printed = capsys.readouterr()
    [sentence] = printed.err.splitlines()
    assert re.search(
        r"holdfast: 1 of \d+ cells failed, the first because: the attack broke; run the same command", sentence
    )
    assert "Next:" not in printed.out
    assert (tmp_path / "out" / "report.html").is_file()
    assert next_command(run(capsys, *attack))[0] == "audit"


def test_testbed_writes_a_domain_and_two_models(
    small_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the size that tests use, whose models are in the cache."""
    monkeypatch.setattr("holdfast.runs.testbed.run_jobs", run_here)
    monkeypatch.setattr(Sizes.__init__, "__kwdefaults__", asdict(SMALL))
    folder = tmp_path / "bed"
    command = ("testbed", folder, "--seed", 5, "--benign", SMALL.benign)
    assert next_command(run(capsys, *command))[:3] == ["safeguard", "random-mapping", "tar"]
    for name in ("model", "never_exposed"):
        AutoModelForCausalLM.from_pretrained(folder / name)
    assert file_digest(folder / "data" / "attack.jsonl") == file_digest(small_testbed.folder / "data" / "attack.jsonl")
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    run(capsys, *command)
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_testbed_of_the_refusal_kind_holds_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[dict[str, Any]] = []

    def run_nothing(jobs: Sequence[Job], workers: int, **how: Any) -> dict[Job, Outcome]:
        placed.extend(job.arguments for job in jobs)
        return {job: Outcome(job=job) for job in jobs}

    monkeypatch.setattr("holdfast.runs.testbed.run_jobs", run_nothing)
    folder = tmp_path / "bed"
    said = run(capsys, "testbed", folder, "--kind", "refusal", "--benign", SMALL.benign)
    assert next_command(said)[:3] == ["safeguard", "refusal-sft", "refusal-dpo"]
    assert [(held["which"], held["kind"]) for held in placed] == [("model", "refusal"), ("never_exposed", "refusal")]
    first = json.loads((folder / "data" / "forget.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"prompt", "chosen", "rejected"}
    assert main(["testbed", str(folder), "--benign", str(SMALL.benign)]) != 0, "the folder holds the other kind"
    assert main(["testbed", str(tmp_path / "other"), "--kind", "reluctance"]) != 0
    assert "reluctance" in capsys.readouterr().err


def test_study_says_how_long_it_takes_and_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert "about" in run(capsys, "study", "ablations", "--estimate")
    some = run(capsys, "study", "paper-tables-full", "--only", "seam", "--only", "cir", "--estimate")
    assert "holdfast study paper-tables-full --only seam --only cir --out" in " ".join(some.split())
    assert main(["study", "ablation", "--estimate"]) != 0
    assert "did you mean ablations" in capsys.readouterr().err


@pytest.fixture
def nothing_from_outside() -> Iterator[None]:
    """No plug-in is left behind for the tests that follow in this process."""
    yield
    load_plugins()


@pytest.mark.usefixtures("nothing_from_outside")
def test_the_next_command_carries_on_what_belongs_to_model_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the next verb takes it: a report runs no model and loads no plug-in."""
    plugin, at = str(write_plugin(tmp_path / "my shifts.py")), tmp_path / "in"
    at.mkdir()
    given = ("--plugins", plugin, "--trust-remote-code", "--device", "cpu", "--precision", "mixed")
    with stubbed("evaluate", tmp_path / "out", "x"):
        suggested = next_command(run(capsys, *VERBS_WORDS["evaluate"][1](at, tmp_path / "out"), *given))
    assert suggested[0] == "attack"
    values = VERBS["attack"].make_context("attack", suggested[1:]).params
    assert (list(values["plugins"]), values["trust_remote_code"]) == ([plugin], True)
    assert (values["device"], values["precision"]) == ("cpu", "mixed")
    with stubbed("study", tmp_path / "out", "x"):
        suggested = next_command(run(capsys, "study", "claims", "--out", tmp_path / "out", "--plugins", plugin))
    assert suggested[0] == "report"
    assert "--plugins" not in suggested
