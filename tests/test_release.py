"""What a release is made of: one version everywhere, a wheel that works alone, and a site of the docs without a warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.report.synthetic import audited, plan, write

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased"
    assert f"{citation['version']} ({citation['date-released']})" == headings[1]
    assert PROJECT["version"] == citation["version"]
    assert PROJECT["license"] == citation["license"]


def test_the_lowest_versions_are_those_that_the_project_allows() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines)
    for requirement in PROJECT["dependencies"]:
        name, least = re.fullmatch(r"([\w-]+)>=([\d.]+).*", requirement).groups()  # type: ignore[union-attr]
        pinned, allowed = ([int(part) for part in text.split(".")] for text in (pins[name], least))
        # What a dependency of ours asks for itself may lie above what we ask for.
        assert pinned >= allowed, requirement
    assert pins["transformers"].startswith("5.16.")
    assert pins["torch"].startswith("2.11.")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `make wheel` does; pip fetches the build's backend."""
    out = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    built = subprocess.run(pip, capture_output=True, text=True, check=False)
    if "hatchling" in built.stderr and built.returncode:
        pytest.skip("pip cannot have the build's backend here")
    assert built.returncode == 0, built.stderr
    [path] = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("holdfast/")}
    package = ROOT / "src" / "holdfast"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {*(f"holdfast/{path.relative_to(package)}" for path in files), "holdfast/records.schema.json"}
    assert {"holdfast/py.typed", "holdfast/report/templates/style.css"} <= names
    schema = zipfile.ZipFile(wheel).read("holdfast/records.schema.json").decode()
    assert json.loads(schema) == json.loads((ROOT / "docs" / "records.schema.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_wheel_works_where_the_checkout_is_not(wheel: Path, tmp_path: Path) -> None:
    """It is installed into a folder of its own and makes a report there, from its own templates."""
    there = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(there), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True, capture_output=True)
    results = audited(5)[1]
    folder = write(tmp_path / "audit", plan(results), results)
    environment = {**os.environ, "PYTHONPATH": str(there)}
    for words in (
        ["-m", "holdfast", "report", str(folder), "--out", "page.html"],
        ["-m", "holdfast", "list", "suites"],
    ):
        subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    where = [sys.executable, "-c", "import holdfast; print(holdfast.__file__)"]
    said = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(said.strip()).is_relative_to(there)
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a notice of the theme's end of life, in 2027
    built = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"(https?:[^\"]+)", text)
        fetched += re.findall(r"<link[^>]+rel=\"(?:stylesheet|preconnect|icon)\"[^>]+href=\"(https?:[^\"]+)", text)
        assert fetched == [], page.name
