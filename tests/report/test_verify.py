from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.core.files import digest
from holdfast.core.reproduction import FILE
from holdfast.core.types import HoldfastError
from holdfast.report.page import build_report
from holdfast.report.verify import Verified, verify
from holdfast.report.words.verify import sentences
from holdfast.runs.reproducible import write_reproduction
from tests.report.synthetic import audited, named_by_content, plan, write


def no_model(path: Path) -> str:
    return "0" * 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit's folder as `holdfast audit` leaves it, with runs that are named by what was run."""
    _, results = audited(5, diverged=False)
    results = [named_by_content(result) for result in results if result.attack in ("none", "full-adamw-1e-3")]
    campaign = plan(results)
    for label, model in campaign.details["models"].items():
        model["digest"] = digest(label)
    folder = write(tmp_path_factory.mktemp("verified") / "audit", campaign, results)
    write_reproduction(folder)
    build_report([folder], folder / "report.html")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "audit"))


def wrong(found: tuple[Verified, ...]) -> dict[str, int]:
    return {one.kind: len(one.wrong) for one in found if one.wrong}


def test_an_audit_that_nobody_touched_agrees_with_itself(folder: Path) -> None:
    found = verify(folder, no_model)
    assert wrong(found) == {}
    checked = {one.kind: one.checked for one in found}
    assert checked["identities"] == 24
    assert checked["seal"] == 25
    assert checked["numbers"] > 40
    assert checked["page"] == 3
    assert sentences(found)[-1].startswith("All that was checked agrees")


def edit(path: Path, pattern: str, text: str) -> None:
    before = path.read_text(encoding="utf-8")
    after = re.sub(pattern, text, before, count=1)
    assert after != before
    path.write_text(after, encoding="utf-8")


def a_cell(folder: Path) -> Path:
    """The file of an attacked run of the model under test."""
    return next(
        path
        for path in sorted((folder / "cells").iterdir())
        if '"model": "tar", ' in path.read_text() and "adamw" in path.read_text()
    )


def lower_a_measurement(folder: Path) -> None:
    path = a_cell(folder)
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    last = max(i for i, record in enumerate(records) if record.get("evaluation") == "hazard")
    records[last]["value"] = 0.0
    lines[last] = json.dumps(records[last])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def another_attack(folder: Path) -> None:
    edit(a_cell(folder), r'"lr": 0.001', '"lr": 0.002')


def another_seed_in_the_identity(folder: Path) -> None:
    edit(a_cell(folder), r'("seed": )\d(, "precision")', r"\g<1>7\g<2>")


def a_run_left_out(folder: Path) -> None:
    a_cell(folder).unlink()


def another_plan(folder: Path) -> None:
    edit(folder / "campaign.json", r'"suite": "standard"', '"suite": "thorough"')


def other_weights_in_the_plan(folder: Path) -> None:
    edit(folder / "campaign.json", r'"digest": "[0-9a-f]{64}"', f'"digest": "{"0" * 64}"')


def a_number_in_the_table(folder: Path) -> None:
    path = folder / "report.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["campaigns"][0]["summary"]["pairs"][-1]["peak"]["mean"] += 0.001
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def a_number_on_the_page(folder: Path) -> None:
    edit(folder / "report.html", r"(>)(\d\d)\s%", r"\g<1>11 %")


def a_number_in_the_markdown(folder: Path) -> None:
    edit(folder / "report.md", r"\b(\d\d)\s%", "11 %")


@pytest.mark.parametrize(
    ("tamper", "kinds"),
    [
        (another_attack, {"identities", "seal"}),
        (another_seed_in_the_identity, {"identities", "seal"}),
        (a_run_left_out, {"seal"}),
        (another_plan, {"seal"}),
        (other_weights_in_the_plan, {"plan", "seal"}),
    ],
)
def test_whatever_was_changed_in_the_records_is_found(
    folder: Path, tamper: Callable[[Path], None], kinds: set[str]
) -> None:
    (folder / "report.html").unlink()
    tamper(folder)
    found = verify(folder, no_model)
    assert set(wrong(found)) == kinds
    said = sentences(found)
    assert "disagreement" in said[-2] + said[-1]
    assert any(line.startswith("  ") for line in said)


@pytest.mark.parametrize(
    ("tamper", "kinds"),
    [
        (lower_a_measurement, {"seal", "numbers", "page"}),
        (a_number_in_the_table, {"numbers", "page"}),
        (a_number_on_the_page, {"page"}),
        (a_number_in_the_markdown, {"page"}),
    ],
)
def test_whatever_was_changed_on_the_page_is_found(
    folder: Path, tamper: Callable[[Path], None], kinds: set[str]
) -> None:
    tamper(folder)
    assert set(wrong(verify(folder, no_model))) == kinds


def test_a_run_that_the_plan_does_not_name_is_said_to_count_nowhere(folder: Path) -> None:
    (folder / "report.html").unlink()
    shutil.copy(a_cell(folder), folder / "cells" / ("f" * 16 + ".jsonl"))
    found = verify(folder, no_model)
    assert wrong(found) == {}
    assert "1 record file of runs that the plan does not name (ffffffffffffffff)" in " ".join(sentences(found))


def test_a_measurement_changed_together_with_the_page_is_found_by_the_seal_alone(folder: Path) -> None:
    lower_a_measurement(folder)
    build_report([folder], folder / "report.html")
    assert wrong(verify(folder, no_model)) == {"seal": 1}
    (folder / FILE).unlink()
    found = verify(folder, no_model)
    assert wrong(found) == {}
    assert [one.kind for one in found if one.skipped == "no seal"] == ["seal"]
    assert "no reproduce.json" in " ".join(sentences(found))


def test_a_public_page_is_made_anew_too(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "public.html"
    build_report([folder], page, public=True)
    assert wrong(verify(folder, no_model, [page])) == {}
    a_number = re.search(r">(\d\d)\s%", page.read_text(encoding="utf-8"))
    assert a_number is not None
    edit(page, r">(\d\d)\s%", ">11 %")
    found = verify(folder, no_model, [page])
    assert wrong(found) == {"page": 1}
    assert "public.html, line" in " ".join(sentences(found))


def test_a_page_of_another_version_is_not_made_anew(folder: Path) -> None:
    edit(folder / "report.json", r'"holdfast": "[^"]+"', '"holdfast": "0.0.9"')
    found = verify(folder, no_model)
    assert wrong(found) == {}
    assert "other version" in {one.skipped for one in found}


def test_a_model_at_hand_is_held_against_the_records(folder: Path, tmp_path: Path) -> None:
    (folder / "report.html").unlink()
    right = verify(folder, lambda path: digest("tar"), models=[tmp_path])
    assert wrong(right) == {}
    assert [one.name for one in right if one.kind == "models"] == ["tar"]
    other = verify(folder, no_model, models=[tmp_path])
    assert wrong(other) == {"models": 1}
    assert "other weights than those that were audited" in " ".join(sentences(other))


def test_where_the_plan_says_that_the_models_are_they_are_hashed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tar").mkdir()
    (folder / "report.html").unlink()
    path = folder / "campaign.json"
    table = json.loads(path.read_text())
    table["details"]["models"]["tar"]["path"] = str(tmp_path / "tar")
    path.write_text(json.dumps(table))
    (folder / FILE).unlink()
    found = {one.name: one for one in verify(folder, no_model) if one.kind == "models"}
    assert len(found["tar"].wrong) == 1
    assert found["base"].skipped == "not here"


def test_what_cannot_be_verified_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="beside it have to be there"):
        verify(folder, no_model, [tmp_path / "none.html"])
    (folder / "report.json").write_text("[1]")
    with pytest.raises(HoldfastError, match=r"no report of holdfast"):
        verify(folder, no_model)
    (folder / "report.html").unlink()
    assert "no page" in {one.skipped for one in verify(folder, no_model)}
