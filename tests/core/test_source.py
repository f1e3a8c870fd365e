"""Code from outside is known by its source: an edited plug-in is another plug-in."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.attacks.finetune import FineTune
from holdfast.core.outside import load_plugins
from holdfast.core.presets import SOURCE, collect, describe, restore
from holdfast.core.source import code_digest
from holdfast.core.types import HoldfastError
from tests.outside import write_plugin


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    load_plugins()


def source(path: Path, *changes: tuple[str, str]) -> str:
    load_plugins(str(write_plugin(path, *changes)))
    return str(describe(collect("holdfast.attacks")["descend"])[SOURCE])


def test_holdfasts_own_plug_ins_are_known_by_their_fields_alone() -> None:
    assert code_digest(FineTune) == ""
    for package in ("holdfast.attacks", "holdfast.safeguards", "holdfast.evals"):
        for preset in collect(package).values():
            assert SOURCE not in describe(preset)
            assert type(preset).version == 1
            assert "version" not in describe(preset)


def test_an_edit_is_another_source_and_the_same_text_elsewhere_is_not(tmp_path: Path) -> None:
    before = source(tmp_path / "shifts.py")
    assert source(tmp_path / "elsewhere.py") == before
    # Of the same length and within the second, so that neither size nor time tells the file from the old one.
    assert source(tmp_path / "shifts.py", ("STEP = 1.0", "STEP = 2.0")) != before
    assert sys.modules[type(collect("holdfast.attacks")["descend"]).__module__].STEP == 2.0
    assert source(tmp_path / "shifts.py") == before


def test_a_file_that_is_edited_counts_once_it_is_loaded_anew(tmp_path: Path) -> None:
    before = source(tmp_path / "shifts.py")
    write_plugin(tmp_path / "shifts.py", ("STEP = 1.0", "STEP = 2.0"))
    assert describe(collect("holdfast.attacks")["descend"])[SOURCE] == before


def test_a_version_is_part_of_a_description_from_two_on(tmp_path: Path) -> None:
    load_plugins(str(write_plugin(tmp_path / "shifts.py", ('family = "descent on norms"', "version = 2"))))
    descend = collect("holdfast.attacks")["descend"]
    described = describe(descend)
    assert described["version"] == 2
    assert restore("holdfast.attacks", described) == descend
    assert restore("holdfast.attacks", {**described, "version": 1, SOURCE: "of another time"}) == descend
    load_plugins(
        str(
            write_plugin(
                tmp_path / "field.py",
                ("rate: float = 0.5", 'version: int = 1\n    """its number"""\n    rate: float = 0.5'),
            )
        )
    )
    assert describe(collect("holdfast.attacks")["descend"])["version"] == 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / f"source_of_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "step.py").write_text("def step():\n    return 1.0\n")
    (folder / "test_step.py").write_text("")
    write_plugin(folder / "shifts.py", ("STEP = 1.0", "from .step import step\nSTEP = step()"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def test_every_module_of_a_package_counts_and_its_tests_do_not(package: Path) -> None:
    load_plugins(f"{package.name}.shifts")
    descend = collect("holdfast.attacks")["descend"]
    before = describe(descend)
    (package / "test_step.py").write_text("# edited\n")
    (package / "step.py").write_text("def step():\n    return 2.5\n")
    assert describe(descend) == before  # the old code is still what runs
    importlib.reload(sys.modules[f"{package.name}.step"])
    after = describe(descend)
    assert after != before
    (package / "test_step.py").write_text("# edited again\n")
    importlib.reload(sys.modules[f"{package.name}.step"])
    assert describe(descend) == after


def test_a_plug_in_within_a_plug_in_has_its_source_there(tmp_path: Path) -> None:
    from holdfast.safeguards.parts.adversary import Adversary
    from holdfast.safeguards.tar import TAR

    before = source(tmp_path / "shifts.py")
    [adversary] = describe(TAR(adversaries=(Adversary(attack=collect("holdfast.attacks")["descend"]),)))["adversaries"]
    assert SOURCE not in adversary
    assert adversary["attack"][SOURCE] == before


def test_a_class_without_a_file_is_refused() -> None:
    prompt = type("Prompted", (FineTune,), {"__module__": "__no_file__"})
    with pytest.raises(HoldfastError, match=r"Prompted has no source file.*load_plugins"):
        describe(prompt())
