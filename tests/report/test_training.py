"""The chapter on how safeguards were trained: a picture a stage, nothing in public, and nothing where no losses are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from holdfast.report.page import build_report
from tests.report.synthetic import audited, write
from tests.report.test_page import HOSTILE, tags

TITLE = "How the safeguards were trained"


def made(folder: Path, losses: object, *, public: bool = False) -> str:
    campaign, results = audited(1, diverged=False)
    models = campaign.details["models"]
    models["tar"]["losses"] = losses
    campaign = replace(campaign, details={**campaign.details, "models": models})
    report = build_report([write(folder / "audit", campaign, results)], folder / "report.html", public=public)
    parsed = tags(report.html)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "script" not in parsed.tags
    assert TITLE in report.markdown.read_text(encoding="utf-8") or TITLE not in report.html.read_text(encoding="utf-8")
    assert json.loads(report.json.read_text(encoding="utf-8"))
    return report.html.read_text(encoding="utf-8")


MAPPING = {"mapping loss": [0.969, 0.7, 0.5], "retain loss": [1.0, 1.1, 1.0]}
LOSSES = [
    {"stage": 1, "preset": "random-mapping", "steps": [1, 2, 3], "losses": MAPPING},
    {"stage": 2, "preset": HOSTILE, "steps": [1], "losses": {HOSTILE: [-2.5]}},
]


def test_each_stage_has_a_picture_of_its_losses(tmp_path: Path) -> None:
    page = made(tmp_path, LOSSES)
    assert TITLE in page
    assert "Line charts of the losses of random-mapping by update: mapping loss 0.969 → 0.5, retain loss 1 → 1." in page
    assert "steps: 1, 2, 3" not in page, "the facts of a model leave its losses to their chapter"


def test_losses_are_no_part_of_a_public_report_and_no_chapter_stands_without_them(tmp_path: Path) -> None:
    assert TITLE not in made(tmp_path / "public", LOSSES, public=True)
    assert TITLE not in made(tmp_path / "none", [{"anything": 1}])
