"""Plug-ins from outside: named files, folders and modules, and entry points of what is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from holdfast.attacks.space import collect_families
from holdfast.core import outside
from holdfast.core.outside import load_plugins, load_same, loaded, named
from holdfast.core.presets import collect, describe, families, restore
from holdfast.core.settings import read_listing, with_settings
from holdfast.core.types import HoldfastError
from holdfast.recipes.run import pick_study
from holdfast.runs.study.study import Study
from holdfast.runs.suites import attacks_of, called, suites
from tests.outside import MODULE, write_plugin


@pytest.fixture(autouse=True)
def nothing_else() -> Iterator[None]:
    """No plug-in is left behind."""
    before = set(sys.modules)
    yield
    load_plugins()
    outside.installed.cache_clear()
    for name in set(sys.modules) - before:
        if "plugin" in name or name.startswith("outside_of"):
            del sys.modules[name]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that Python can import, with the module split over two files, and tests that nobody may import."""
    folder = tmp_path / "on_path" / f"outside_of_{tmp_path.name}"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Shifts."""\n')
    (folder / "tests" / "__init__.py").write_text("raise SystemExit\n")
    (folder / "test_it.py").write_text("raise SystemExit\n")
    (folder / "_hidden.py").write_text("raise SystemExit\n")
    (folder / "step.py").write_text("STEP = 1.0\n")
    write_plugin(folder / "shifts.py", ("STEP = 1.0", f"from {folder.name}.step import STEP"))
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def file_of(package: Path, tmp_path: Path) -> str:
    return str(write_plugin(tmp_path / "my-shifts.py"))


WAYS: dict[str, Callable[[Path, Path], str]] = {
    "a file": file_of,
    "a folder": lambda package, tmp_path: str(package),
    "a package": lambda package, tmp_path: package.name,
    "a module": lambda package, tmp_path: f"{package.name}.shifts",
}


@pytest.mark.parametrize("way", WAYS)
def test_everything_that_a_named_module_lists_is_found_like_holdfasts_own(
    way: str, package: Path, tmp_path: Path
) -> None:
    word = WAYS[way](package, tmp_path)
    assert "descend" not in collect("holdfast.attacks")
    load_plugins(word)
    assert named() == (word,)
    assert {"descend", "descend-far"} < collect("holdfast.attacks").keys()
    assert "scale" in collect("holdfast.safeguards")
    assert "norms-size" in collect("holdfast.evals")
    assert "scale" not in collect("holdfast.attacks")
    assert collect_families()["descent"].built({"rate": 0.25}).rate == 0.25  # type: ignore[attr-defined]
    assert list(attacks_of("descents")) == ["descend", "descend-far"]
    assert isinstance(pick_study("descents-study"), Study)
    [title] = [title for title, names in families("holdfast.attacks").items() if "descend" in names]
    assert title.startswith("Shifts of single layers, and how large a model's weights are. (")
    assert list(families("holdfast.safeguards").values())[-1] == ["scale"]
    descend = collect("holdfast.attacks")["descend"]
    assert restore("holdfast.attacks", describe(descend)) == descend
    assert "descend+rate=3.0" in with_settings({"descend": descend}, ["descend.rate=3"])
    load_plugins()
    assert "descend" not in collect("holdfast.attacks")
    assert "descents" not in suites()


def test_a_file_of_stages_and_a_suite_name_presets_from_outside(tmp_path: Path) -> None:
    load_plugins(str(write_plugin(tmp_path / "shifts.py")))
    (tmp_path / "suite.toml").write_text('[[attacks]]\npreset = "descend"\nrate = 0.75\n')
    assert list(read_listing(tmp_path / "suite.toml", "attacks").plugins) == ["descend+rate=0.75"]
    (tmp_path / "stages.toml").write_text('[[stages]]\npreset = "scale"\nby = 1.5\n')
    assert list(read_listing(tmp_path / "stages.toml", "stages").plugins) == ["scale+by=1.5"]


def test_the_name_of_a_suite_from_outside_says_what_is_in_it(tmp_path: Path) -> None:
    load_plugins(str(write_plugin(tmp_path / "shifts.py")))
    before = called("descents")
    assert before.startswith("descents (version 1, from a plug-in: ")
    load_plugins(str(write_plugin(tmp_path / "other.py", ("STEP = 1.0", "STEP = 2.0"))))
    assert called("descents") != before


def test_an_installed_package_is_found_by_its_entry_points(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        group: [EntryPoint(name="shifts", value=f"{package.name}.shifts", group=group)]
        for group in ("holdfast.attacks", "holdfast.suites")
    }
    monkeypatch.setattr(outside, "entry_points", lambda group: entries.get(group, []))
    outside.installed.cache_clear()
    assert "descend" in collect("holdfast.attacks")
    assert "descents" in suites()
    load_plugins(f"{package.name}.shifts")  # named too: the same presets are no second ones
    assert "descend" in collect("holdfast.attacks")
    entries["holdfast.evaluations"] = [EntryPoint(name="no", value="json:loads", group="holdfast.evaluations")]
    outside.installed.cache_clear()
    with pytest.raises(HoldfastError, match="entry point no of an installed package names json:loads; name the module"):
        collect("holdfast.attacks")


BROKEN = {
    "its code fails": ("STEP = 1.0", "STEP = 1 / 0", r"be loaded \(ZeroDivisionError: division by zero in line \d+ of FILE\)"),
    "its code ends Python": ("STEP = 1.0", "raise SystemExit", r"FILE cannot be loaded \(SystemExit in line \d+ of FILE\)"),
    "it is no Python": ("STEP = 1.0", "STEP = = 1", r"cannot be loaded \(SyntaxError: invalid syntax in line \d+ of FILE\)"),
    "it needs what is not there": ("STEP = 1.0", "import no_such", "ModuleNotFoundError: No module named 'no_such'"),
    "a method is missing": ("def steps", "def stapes", r"TypeError: Can't instantiate abstract class Descend .*steps"),
    "a preset is no plug-in": ('"descend": Descend()', '"descend": 3', "'descend' of FILE is a int, which is no Attack"),
    "a method takes something else": ("Data, run: Run) -> G", "Data) -> G", r"steps of Descend in FILE must take \(model, "),
    "a class is no dataclass": ("@dataclass(frozen=True, kw_only=True)\nclass S", "class S", "by of Scale in FILE is no field"),
    "a value cannot be written down": ("rate: float = 0.5", "rate: float = float('nan')", "'descend' of FILE cannot be written"),
    "a name is no name": ('"descend": D', '"de scend": D', "'de scend' of FILE needs another name"),
    "a name means something else": ('"descend": D', '"none": D', "'none' of FILE needs another name"),
    "presets are a list": ("PRESETS = {", "PRESETS = [3]\nOTHERS = {", "PRESETS of FILE must be a dictionary"),
    "a preset of holdfast's has the name": ('"descend": D', '"int4": D', r"'int4' stands in both holdfast\S+ and FILE; rename"),
    "a class of holdfast's has the name": ("Descend", "FineTune", r"'FineTune' stands in both holdfast\S+ and FILE; rename"),
    "a family is none": ("Family(attack=Descend(),", "dict(attack=Descend(),", "the family 'descent' of FILE is no Family"),
    "a suite is none": ('SUITES = {"descents": ', 'SUITES = {"descents": None, "others": ', "'descents' of FILE is no Suite"),
    "a suite names what is not there": ('Suite(("descend", ', 'Suite(("descent", ', "there is no attack 'descent'; did you mean"),
}  # fmt: skip


def load_all(path: Path) -> None:
    load_plugins(str(path))
    for package in ("holdfast.attacks", "holdfast.safeguards", "holdfast.evals"):
        collect(package)
    collect_families()
    suites()


@pytest.mark.parametrize("what", BROKEN)
def test_a_plug_in_that_is_none_is_one_sentence_that_names_its_file(what: str, tmp_path: Path) -> None:
    before, after, says = BROKEN[what]
    path = write_plugin(tmp_path / "shifts.py", (before, after))
    with pytest.raises(HoldfastError, match=says.replace("FILE", str(path))) as caught:
        load_all(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("no_such_module", "there is no module 'no_such_module' to take plug-ins from; give a Python file"),
        ("no/such.py", "the plug-in no/such.py is not there"),
        (".", "is no package: it has no __init__.py"),
        ("json", "json lists no plug-ins; give its module PRESETS, FAMILIES, SUITES or STUDIES"),
    ],
)
def test_what_is_not_there_is_said(word: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HoldfastError, match=says):
        load_plugins(word)


def test_two_files_that_list_one_name_are_both_named(tmp_path: Path) -> None:
    one = write_plugin(tmp_path / "one.py")
    two = write_plugin(tmp_path / "two.py")
    load_plugins(str(one), str(two))
    with pytest.raises(HoldfastError, match=f"'descend' stands in both {one} and {two}; rename one"):
        collect("holdfast.attacks")


def test_a_second_process_of_a_run_wants_the_same_code(tmp_path: Path) -> None:
    path = write_plugin(tmp_path / "shifts.py")
    load_plugins(str(path))
    before = loaded()
    load_same(before)
    write_plugin(path, ("STEP = 1.0", "STEP = 2.0"))
    with pytest.raises(HoldfastError, match=f"the plug-in {path} was edited while the command ran"):
        load_same(before)


def test_importing_the_text_of_these_tests_is_what_a_plug_in_is() -> None:
    compile(MODULE, "shifts.py", "exec")
