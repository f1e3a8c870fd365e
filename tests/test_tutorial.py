"""The notebook of the docs: its cells compile, what they name exists, and the whole of it runs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast.core.presets import collect

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_holds_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])


def test_what_the_cells_name_exists() -> None:
    """Public names, the arguments of calls, the methods of results, and presets; names are bound before they are used."""
    tree = ast.parse("\n".join(cells("code")))
    taken = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(taken) - {"replace"} <= set(holdfast.__all__)
    presets = {**collect("holdfast.attacks"), **collect("holdfast.safeguards")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in holdfast.__all__:
            called: Any = getattr(holdfast, node.func.id)
            known = inspect.signature(called).parameters
            assert {keyword.arg for keyword in node.keywords} <= set(known), ast.unparse(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "adamw" in node.value:
            assert node.value in presets
    assert dataclasses.is_dataclass(holdfast.Audit)
    for name in ("verdicts", "report", "to_pandas"):
        assert hasattr(holdfast.Results, name)
    bound = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    used = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)}
    assert used <= bound | set(taken)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(holdfast.__file__).parents[1])]))
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "audit" / "report.html").is_file()
    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "<table>" in shown
    assert "undecided" in shown or "breached" in shown
