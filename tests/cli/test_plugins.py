"""A plug-in from outside through the verbs: it is run like holdfast's own, and an edit is a new plug-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import holdfast
from holdfast.campaign.exposure import family_in_training, seen_in_training
from holdfast.cli.app import main
from holdfast.core.outside import load_plugins
from holdfast.core.presets import pick
from holdfast.core.records import CampaignPlan, read_campaign
from holdfast.engine.checkpoint import Checkpoint
from tests.cli.test_cli import run, run_here
from tests.conftest import SmallTestbed
from tests.outside import write_plugin

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plug-in is left behind, and the cache is the test's own."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("holdfast.campaign.run.run_jobs", run_here)
    yield
    load_plugins()


@pytest.fixture
def given(tiny_testbed: SmallTestbed, tmp_path: Path) -> list[str]:
    """A model and a domain that has little to ask, so that a cell takes little time."""
    folder = tmp_path / "domain"
    shutil.copytree(tiny_testbed.folder, folder, ignore=shutil.ignore_patterns("model", "never_exposed"))
    text = (folder / "domain.toml").read_text()
    left_out = ("benign_new", "hazard_heldout", "hazard_selection", "related", "distill")
    kept = [table for table in text.split("\n\n") if not any(name in table for name in left_out)]
    (folder / "domain.toml").write_text("\n\n".join(kept))
    return ["--model", tiny_testbed.model.path, "--domain", str(folder)]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_an_edited_safeguard_is_built_anew_and_an_unchanged_one_is_said_to_be_reused(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path / "shifts.py")

    def build(out: str) -> str:
        return run(capsys, "safeguard", "scale", *given, "--plugins", plugin, "--out", tmp_path / out)

    assert "Reused" not in build("first")
    assert "Reused from the cache: scale\n" in build("again")
    assert weights(tmp_path / "first") == weights(tmp_path / "again")
    write_plugin(plugin, ("STEP = 1.0", "STEP = 2.0"))
    assert "Reused" not in build("edited")
    assert weights(tmp_path / "first") != weights(tmp_path / "edited")
    cards = [json.loads((tmp_path / out / "holdfast.json").read_text()) for out in ("first", "edited")]
    sources = [card["stages"][0]["config"]["source code"] for card in cards]
    assert len(set(sources)) == 2


def test_an_edited_attack_is_run_anew_and_cells_that_are_there_are_said_to_be_reused(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = write_plugin(tmp_path / "shifts.py")

    def attack() -> str:
        return run(capsys, "attack", "descend", *given, "--plugins", plugin, "--out", tmp_path / "attack")

    assert "Reused" not in attack()
    cells = len(read_campaign(tmp_path / "attack")[1])
    assert f"Reused from the cache: {cells} of {cells} cells, recorded in " in attack()
    before = finals(tmp_path / "attack")
    write_plugin(plugin, ("STEP = 1.0", "STEP = 2.0"))
    assert "Reused" in attack()  # what an attack does not touch is measured once
    assert finals(tmp_path / "attack") != before


def finals(folder: Path) -> list[float]:
    """The losses of the attack in the folder's plan."""
    _, results = read_campaign(folder)
    [result] = [result for result in results if result.attack == "descend"]
    return [loss for _, loss in result.losses]


def test_a_plug_in_goes_through_the_verbs(
    given: list[str], tmp_path: Path, tiny_testbed: SmallTestbed, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = str(write_plugin(tmp_path / "shifts.py"))
    out, with_it = tmp_path / "audit", ("--plugins", plugin)
    assert "what a gradient is multiplied by" in run(capsys, "list", "descend", *with_it)
    assert "descents, version 1" in run(capsys, "list", "suites", *with_it)
    run(capsys, "safeguard", "scale", *given, *with_it, "--out", tmp_path / "scaled", "--set", "scale.by=1.1")
    command = [
        "audit", "--model", tmp_path / "scaled", "--undefended", tiny_testbed.model.path, *given[2:], "--suite", "descents",
        "--seeds", "1", "--set", "descend.rate=0.25", "--out", out, *with_it,
    ]  # fmt: skip
    said = run(capsys, *command)
    assert said.rstrip().splitlines()[-1].startswith("Next: holdfast card ")
    plan, results = read_campaign(out)
    assert plan.attacks == ["descend+rate=0.25", "descend-far"]
    assert plan.suite.startswith("descents (version 1, from a plug-in: ")
    assert {result.status for result in results} == {"finished"}
    assert any(record.evaluation == "norms-size" for result in results for record in result.records)
    run(capsys, "report", out, "--out", tmp_path / "report.html")
    assert "descend-far" in (tmp_path / "report.md").read_text(encoding="utf-8")
    run(capsys, "report", out, "--public", "--out", tmp_path / "public.html")
    public = (tmp_path / "public.md").read_text(encoding="utf-8")
    assert "descent on norms" in public
    assert "descend-far" not in public
    run(capsys, "card", out, "--out", tmp_path / "card.md")
    # In place of the words that pytest was started with:
    words = " ".join(map(str, ["holdfast", *command]))
    plan.details["command"] = words
    CampaignPlan.write(plan, out)
    min((out / "cells").iterdir()).unlink()
    assert f"--plugins {plugin}" in run(capsys, "audit", "--status", out).rpartition("Next: ")[2]
    assert main(["attack", "descend", *given, "--out", str(tmp_path / "none")]) == 2
    assert "there is no attack 'descend'" in capsys.readouterr().err


# An installed package


def write_wheel(folder: Path, name: str, files: Mapping[str, str | bytes], entry_points: str) -> Path:
    """A wheel of pure Python; pip makes its own RECORD of what it installs."""
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points,
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for where, text in {**files, **meta}.items():
            wheel.writestr(where, text)
        record = "".join(f"{where},,\n" for where in [*files, *meta, f"{info}/RECORD"])
        wheel.writestr(f"{info}/RECORD", record)
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment, with holdfast and a plug-in package installed from wheels.

    What holdfast needs is that of the environment which runs the tests.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "tests_of_holdfast.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source = Path(str(holdfast.__file__)).parent
    code = {
        f"holdfast/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    command = "\n".join(f"{name} = {target}" for name, target in scripts.items())
    groups = ("attacks", "safeguards", "evaluations", "suites")
    theirs = "".join(f"[holdfast.{group}]\nshifts = outside_shifts\n" for group in groups)
    plugin = {
        "outside_shifts/__init__.py": '"""Shifts."""\n',
        "outside_shifts/step.py": "STEP = 1.0\n",
        "outside_shifts/shifts.py": write_plugin(
            folder / "shifts.py", ("STEP = 1.0", "from outside_shifts.step import STEP")
        ).read_text(),
    }
    wheels = [
        write_wheel(folder, "holdfast", code, f"[console_scripts]\n{command}\n"),
        write_wheel(folder, "outside_shifts", plugin, theirs),
    ]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", *wheels]
    subprocess.run(pip, check=True)
    return folder / "venv" / "bin" / "holdfast"


@pytest.mark.slow
def test_an_installed_package_goes_through_every_verb(
    installed: Path, tmp_path: Path, tiny_testbed: SmallTestbed
) -> None:
    given = ["--model", tiny_testbed.model.path, "--domain", str(tiny_testbed.folder)]  # a search needs all of it
    site = next((installed.parent.parent / "lib").glob("python*/site-packages"))

    def command(*words: object) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [installed, *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    models = ["--model", "scaled", "--undefended", tiny_testbed.model.path, *given[2:]]
    assert "(outside_shifts.shifts)" in command("list", "attacks")
    assert "Descend" in command("list", "descend")
    assert "Reused" not in command("safeguard", "scale", *given, "--out", "scaled")
    assert "Reused from the cache: scale" in command("safeguard", "scale", *given, "--out", "again")
    assert "norms-size" in command("evaluate", "--model", "scaled", *given[2:])
    command("attack", "descend", "--model", "scaled", *given[2:], "--out", "attack", "--set", "descend.rate=0.25")
    command("audit", *models, "--suite", "descents", "--seeds", 1, "--out", "audit")
    assert "seeds" in command("audit", *models, "--suite", "descents", "--seeds", 1, "--out", "planned", "--plan")
    assert "cells, recorded in audit" in command(
        "audit", *models, "--suite", "descents", "--seeds", 1, "--out", "audit"
    )
    command("audit", "--status", "audit")
    command("search", *models, "--families", "descent", "--trials", 2, "--out", "search")
    assert "2 of 2 trials" in command("search", *models, "--families", "descent", "--trials", 2, "--out", "search")
    command("audit", *models, "--suite", "search", "--seeds", 1, "--out", "found")
    command("report", "audit", "--out", "report.html")
    command("compare", "audit", "found", "--out", "compare.html")
    command("card", "audit", "--out", "card.md")
    command("records", "audit", "--out", "records.jsonl")
    assert "about" in command("study", "descents-study", "--estimate")
    before = weights(tmp_path / "scaled")
    (site / "outside_shifts" / "step.py").write_text("STEP = 2.5\n")
    assert "Reused" not in command("safeguard", "scale", *given, "--out", "edited")
    assert weights(tmp_path / "edited") != before


def test_what_a_safeguard_from_outside_trained_against_is_known_without_its_code(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trains = (
        "    def trains_against(self):\n        from holdfast import pick\n\n"
        '        return (pick("holdfast.attacks", "full-adamw-1e-3"),)\n\n'
    )
    scale = '    """the factor of a step"""\n    outer_steps: int = 2\n    """steps"""\n\n'
    plugin = write_plugin(tmp_path / "shifts.py", (scale, scale + trains))
    run(capsys, "safeguard", "scale", *given, "--plugins", plugin, "--out", tmp_path / "scaled")
    load_plugins()
    card = Checkpoint(str(tmp_path / "scaled")).card
    longer = replace(pick("holdfast.attacks", "full-adamw-1e-3"), max_steps=7)
    assert seen_in_training(card, longer)
    assert family_in_training(card, pick("holdfast.attacks", "full-adamw-1e-4"))
    assert not seen_in_training(card, pick("holdfast.attacks", "full-adamw-1e-4"))
    assert not family_in_training(card, pick("holdfast.attacks", "int4"))
