"""The verbs that check an audit, and the statement on a release, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.cli.app import main
from holdfast.report.page import build_report
from tests.report.synthetic import audited, named_by_content, plan, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _, results = audited(1, diverged=False)
    results = [named_by_content(r) for r in results if r.attack in ("none", "full-adamw-1e-3")]
    campaign = plan(results)
    for label, model in campaign.details["models"].items():
        model["digest"] = next(r.model_digest for r in results if r.model == label)
    return write(tmp_path / "audit", campaign, results)


def test_a_release_is_started_stated_and_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", str(folder)]) == 0
    assert "Labels of the models: base, random-mapping, tar" in (folder / "release.toml").read_text()
    assert main(["release", str(folder)]) == 2
    assert "is there already; edit it" in capsys.readouterr().err
    (folder / "release.toml").write_text('use = "a chat assistant"\n')
    page = folder / "report.html"
    assert main(["report", str(folder), "--out", str(page)]) == 0
    assert "a chat assistant" in page.read_text()
    assert main(["verify", str(folder)]) == 0
    assert "All that was checked agrees" in capsys.readouterr().out
    page.write_text(page.read_text().replace("a chat assistant", "a toaster"))
    assert main(["verify", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "a toaster" in printed
    assert "1 disagreement found" in printed


def test_an_unreadable_statement_or_a_folder_without_an_audit_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text('expires = "soon"')
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html"), "--release", str(other)]) == 2
    assert "expires: " in capsys.readouterr().err
    for verb in ("verify", "release"):
        assert main([verb, str(tmp_path)]) == 2
        assert "holds no audit" in capsys.readouterr().err
    build_report([folder], tmp_path / "page.html")
    assert main(["verify", str(folder), "--page", str(tmp_path / "page.html")]) == 0
