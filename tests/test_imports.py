"""Who may import whom, what is heavy, and what is never called: read from the source, not run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "holdfast"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = [path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".") for path in FILES]
SOURCES = list(zip(FILES, MODULES, strict=True))

MAY_IMPORT = {
    "core": {"core"},
    "engine": {"core", "engine"},
    "attacks": {"core", "engine", "attacks"},
    "safeguards": {"core", "engine", "attacks", "safeguards"},
    "evals": {"core", "engine", "evals"},
    "testbed": {"core", "engine", "testbed"},
    "jobs": {"core.memory", "core.outside", "core.reuse", "core.stopping", "core.system", "core.types", "jobs"},
    "testing": {"core", "engine", "attacks", "safeguards", "evals", "testbed", "testing"},
    "campaign": {"core", "engine", "attacks", "safeguards", "evals", "jobs", "campaign"},
    "stats": {"core.files", "core.records", "core.release", "core.reproduction", "core.types", "stats"},
    "report": {
        "core.escape",
        "core.files",
        "core.findings",
        "core.losses",
        "core.outputs",
        "core.reading",
        "core.records",
        "core.release",
        "core.reproduction",
        "core.shown",
        "core.types",
        "stats",
        "report",
    },
    "runs": {"core", "engine", "attacks", "safeguards", "evals", "testbed", "jobs", "campaign", "stats", "runs"},
    "recipes": {
        "core",
        "engine",
        "attacks",
        "safeguards",
        "evals",
        "testbed",
        "jobs",
        "campaign",
        "runs",
        "stats",
        "report",
        "recipes",
    },
}
"""Part -> the parts it may import. `api`, `cli` and the package itself may import all."""

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "schedulefree",
    "lion_pytorch",
    "optuna",
    "datasets",
    "scipy",
    "matplotlib",
    "numpy",
)
LIGHT = ("core", "attacks", "safeguards", "evals", "stats", "report", "jobs", "cli", "__init__", "testbed.world")
"""Rooms and modules that load nothing heavy when they are imported; torch has its home in `engine`."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module


def at_import(path: Path) -> Iterator[ast.AST]:
    """What runs when the module is imported: neither function bodies nor what is there for the type checker."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        waiting += ast.iter_child_nodes(node)


def part_of(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize(("path", "module"), SOURCES, ids=MODULES)
def test_a_module_imports_only_what_it_may(path: Path, module: str) -> None:
    part = module.partition(".")[0]
    if part in ("api", "cli", "__init__", "__main__"):
        return
    for name in imported(ast.walk(tree(path))):
        assert name != "holdfast", f"{module} imports from the package itself, which may import all"
        if name.startswith("holdfast."):
            assert part_of(name.removeprefix("holdfast."), MAY_IMPORT[part]), f"{module} imports {name}"


def test_stats_and_report_never_load_torch() -> None:
    for path, module in SOURCES:
        if part_of(module, {"stats", "report"}):
            assert not [name for name in imported(ast.walk(tree(path))) if part_of(name, {"torch", "transformers"})]


def test_only_the_walk_and_plug_ins_drive_a_plug_in() -> None:
    """Whatever measures, saves or stops is an observer of the one walk; TAR's inner loop and attacks on attacks are plug-ins."""
    driving = {
        module
        for path, module in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "steps"
    }
    assert {module for module in driving if not part_of(module, {"attacks", "safeguards", "testing"})} == {
        "engine.walk"
    }


def test_core_never_loads_torch_not_even_later() -> None:
    for path, module in SOURCES:
        if part_of(module, {"core", "jobs.graph"}):
            assert not [name for name in imported(ast.walk(tree(path))) if part_of(name, {"torch", "transformers"})]


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    for path, module in SOURCES:
        if part_of(module.removesuffix(".__init__"), set(LIGHT)):
            assert not [name for name in imported(at_import(path)) if part_of(name, set(HEAVY))], module


def test_every_plug_in_and_the_command_line_load_without_torch() -> None:
    """The rule above by the fact: what the light modules import must be light too."""
    rooms = {"core", "attacks", "safeguards", "evals", "stats", "report", "jobs", "cli"}
    names = [f"holdfast.{module}" for module in MODULES if part_of(module, rooms)]
    program = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names}]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("path", "module"), SOURCES, ids=MODULES)
def test_nothing_unpickles_evaluates_text_or_trusts_remote_code(path: Path, module: str) -> None:
    names = set(imported(ast.walk(tree(path))))
    assert not names & {"pickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            assert "yaml" not in [alias.name for alias in node.names], module
        if isinstance(node, ast.ImportFrom) and node.module == "yaml":
            assert {alias.name for alias in node.names} <= {"safe_load", "YAMLError"}, module
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy"):
            assert "load" not in [alias.name for alias in node.names], module
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "eval", "exec", "numpy.load", "np.load", "yaml.load"), module
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert not isinstance(keyword.value, ast.Constant), "it is the user's choice"


@pytest.mark.parametrize(("path", "module"), SOURCES, ids=MODULES)
def test_every_module_and_public_class_says_what_it_is(path: Path, module: str) -> None:
    assert ast.get_docstring(tree(path)), module
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or "Protocol" in map(ast.unparse, node.bases), f"{module}.{node.name}"


def test_the_plain_script_needs_the_standard_library_alone() -> None:
    names = {name.partition(".")[0] for name in imported(ast.walk(tree(SOURCE / "stats" / "plain.py")))}
    assert names <= sys.stdlib_module_names
