"""`holdfast init`: what is written works as it stands, and nothing that is there is touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.core.domain import Domain
from holdfast.core.outside import load_plugins
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError
from holdfast.runs.start import Kind, write_start
from holdfast.testing import ATTACK, DOMAIN, EVALUATION, SAFEGUARD, Bench, presets_of, small

CHECKS = {"attack": ATTACK, "safeguard": SAFEGUARD, "evaluation": EVALUATION}
KINDS: tuple[Kind, ...] = ("attack", "safeguard", "evaluation", "domain")
NAMES = ("mine", "a-name-of-exactly-32-characters")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    load_plugins()


def begin(kind: Kind, name: str, folder: Path) -> Path:
    made, test = write_start(kind, name, folder)
    assert test.parent == made.parent == folder
    return made


@pytest.mark.skipif(shutil.which("ruff", path=str(Path(sys.executable).parent)) is None, reason="there is no ruff")
@pytest.mark.parametrize("options", [("--isolated",), ("--isolated", "--select", "E4,E7,E9,F,I,UP,B,SIM,C4,PIE,RET,N")])
def test_what_is_written_passes_ruff_as_it_comes_and_with_more_rules(options: tuple[str, ...], tmp_path: Path) -> None:
    for kind in KINDS:
        for name in NAMES:
            (folder := tmp_path / f"{kind}-{name}").mkdir()
            begin(kind, name, folder)
    ruff = Path(sys.executable).with_name("ruff")
    for command in (("check", *options), ("format", "--check", "--isolated")):
        done = subprocess.run(
            [ruff, *command, "--no-cache", "."], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", CHECKS)
def test_a_plug_in_that_is_begun_keeps_the_contract(kind: Kind, tmp_path: Path, tiny_testbed: Bench) -> None:
    presets = presets_of(begin(kind, "my-own", tmp_path))
    assert "my-own" in presets
    for check in CHECKS[kind]:
        check(small(presets["my-own"]), tiny_testbed)  # type: ignore[operator]


def test_a_domain_that_is_begun_has_what_is_read(tmp_path: Path) -> None:
    domain = Domain.open(begin("domain", "my-own", tmp_path))
    for check in DOMAIN:
        check(domain)
    available = {name for name, evaluation in collect("holdfast.evals").items() if evaluation.available(domain)}
    assert {"hazard", "hazard_selection", "hazard-loss", "benign-loss", "benign_outside_retain"} <= available
    (tmp_path / "my-own" / "data" / "attack.jsonl").write_text(
        (tmp_path / "my-own" / "data" / "forget.jsonl").read_text()
    )
    with pytest.raises(AssertionError, match="8 rows of attack are among the defender's"):
        DOMAIN[-1](Domain.open(tmp_path / "my-own"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_test_passes(kind: Kind, tmp_path: Path) -> None:
    _, test = write_start(kind, "my-own", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_over(kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", kind, "my-own", "--out", str(tmp_path)]) == 0
    assert "Next: holdfast " in capsys.readouterr().out
    made = tmp_path / ("my-own" if kind == "domain" else "my_own.py")
    test = tmp_path / "test_my_own.py"
    before = test.read_bytes()
    assert main(["init", kind, "my-own", "--out", str(tmp_path)]) == 2
    assert f"{made} is there already; give another name" in capsys.readouterr().err
    if kind != "domain":
        made.unlink()
        assert main(["init", kind, "my-own", "--out", str(tmp_path)]) == 2
        assert not made.exists()
    assert test.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Mine", "'Mine' cannot name a start; give words in small letters"),
        ("../mine", "'../mine' cannot name a start"),
        ("mine\n", "cannot name a start"),
        ("class", "'class' cannot name a start"),
        ("x" * 33, "cannot name a start"),
        ("tar", "there is a plug-in called tar already"),
        ("fine-tune", "there is a plug-in called fine-tune already"),  # its class would be FineTune
        ("quantisation", "there is a plug-in called quantisation already"),  # a family of attack
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=says):
        write_start("attack", name, tmp_path)
    assert not list(tmp_path.iterdir())
