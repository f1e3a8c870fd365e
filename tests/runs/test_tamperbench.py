"""TamperBench's attack settings in, our results out in its form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.attacks.finetune import FineTune
from holdfast.cli.app import main
from holdfast.core.records import read_campaign
from holdfast.core.types import HoldfastError
from holdfast.runs.suites import attacks_of
from holdfast.runs.tamperbench import read_grids, write_suite
from tests.report.synthetic import audited, cell, plan, record, write

LORA = """\
base: &base
    model_config: {template: plain, max_generation_length: 1024}
    evals: [strong_reject, mmlu_pro_val]
    per_device_train_batch_size: 8
    learning_rate: 0.0001
    num_train_epochs: 1
    lr_scheduler_type: constant
    optim: adamw_torch
    lora_rank: 16
    max_steps: -1
    harmful_dataset: some_rows
    dataset_size: 1350
    poison_ratio: 1
tuned:
    <<: *base
    per_device_train_batch_size: 16
    learning_rate: 9.03e-4
    lr_scheduler_type: cosine
    max_steps: 256
again:
    <<: *base
falling:
    <<: *base
    lr_scheduler_type: linear
half:
    <<: *base
    lora_rank: 8
    poison_ratio: 0.5
    gradient_accumulation_steps: 2
    lr_scheduler_type: constant_with_warmup
    warmup_steps: 10
    learning_rate: 1e-4
"""


@pytest.fixture
def grids(tmp_path: Path) -> Path:
    files = {
        "lora_finetune": LORA,
        "benign_full_parameter_finetune": LORA.partition("tuned:")[0].replace("    lora_rank: 16\n", ""),
        "refusal_ablation": "base:\n    kl_threshold: 0.1\n",
        "embedding_attack": "base:\n    evals: []\n",
        "backdoor_finetune": "base:\n    prompt_injection: year_2025\n",
        "reinforce": "base:\n    steps: 3\n",
        "full_parameter_finetune": "odd:\n    learning_rate: 1.0e-5\n    neftune_alpha: 5\n",
    }
    for attack, text in files.items():
        (tmp_path / "grids" / attack).mkdir(parents=True)
        (tmp_path / "grids" / attack / "grid.yaml").write_text(text)
    return tmp_path / "grids"


def test_settings_become_a_suite_and_what_does_not_is_said(
    grids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "suite.toml"
    assert main(["import", "tamperbench", str(grids), "--out", str(out)]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    attacks = list(attacks_of(str(out)).values())
    benign, base, tuned, half, edit = attacks[0], attacks[1], attacks[2], attacks[3], attacks[4]
    expected = FineTune(
        batch_size=8, learning_rate=1e-4, max_steps=169, optimizer="adamw", weight_decay=0.0, max_grad_norm=1.0, rows=1350,
        lora_rank=16, lora_alpha=32.0,
    )  # fmt: skip
    assert base == expected
    assert tuned == replace(expected, batch_size=16, learning_rate=9.03e-4, max_steps=256, schedule="warmup-cosine")
    assert half == replace(
        expected, batch_size=16, max_steps=85, benign_share=0.5, rows=675, lora_rank=8, lora_alpha=16.0, schedule="linear-warmup",
        warmup_steps=10,
    )  # fmt: skip
    assert benign == replace(expected, benign_share=1.0, lora_rank=0)
    assert type(edit).__name__ == "Abliterate"
    assert len(attacks) == 5
    for sentence in (
        "lora_finetune/again: it is the same as lora_finetune/base",
        "lora_finetune/falling: holdfast has no schedule 'linear'",
        "embedding_attack/base: it changes the input and no weights",
        "backdoor_finetune/base: its jailbreak is TamperBench's own text",
        "full_parameter_finetune/odd: holdfast has no neftune_alpha",
        "reinforce/base: holdfast has no such attack",
    ):
        assert sentence in said
        assert sentence in out.read_text()
    again = ["import", "tamperbench", str(grids), "--out", str(out), "--json"]
    assert main(again) == 0, "its own file is replaced"
    told = json.loads(capsys.readouterr().out)
    assert (len(told["attacks"]), told["left_out"]["embedding_attack/base"]) == (
        5,
        "it changes the input and no weights",
    )
    (tmp_path / "mine.toml").write_text("a = 1\n")
    assert main(["import", "tamperbench", str(grids), "--out", str(tmp_path / "mine.toml")]) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1\n", "is no grid of TamperBench"),
        ("base: 3\n", "is no grid of TamperBench"),
        ("base: {a: [\n", "cannot be read"),
        ("base: !!python/object/apply:os.system ['true']\n", "cannot be read"),
        ("base: {learning_rate: [1]}\n", "none of these settings has a counterpart"),
        ("base: {lr_scheduler_type: constant}\n", "learning_rate is None, which is no number"),
        ("base: {lr_scheduler_type: constant, learning_rate: -1.0}\n", "learning_rate must be above 0"),
        ("base: {lr_scheduler_type: constant, learning_rate: 1.0, max_steps: 1.5}\n", "which is no whole number"),
    ],
)
def test_a_file_that_is_no_grid_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "lora_finetune").mkdir()
    (tmp_path / "lora_finetune" / "grid.yaml").write_text(text)
    with pytest.raises(HoldfastError, match=sentence) as caught:
        write_suite(read_grids(tmp_path), tmp_path / "out.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(HoldfastError, match=r"holds no grid\.yaml"):
        read_grids(tmp_path / "nothing")


def tuned(lora_rank: int = 0, benign_share: float = 0.0) -> dict[str, Any]:
    return {"class": "FineTune", "lora_rank": lora_rank, "benign_share": benign_share}


def test_results_go_out_in_its_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign, results = audited(2)
    kinds = {"lora-r4-adamw-5e-3": tuned(4), "benign-finetune": tuned(0, 1.0), "retain-then-forget": {"class": "Merge"}}
    configured = [
        replace(r, attack_config=kinds.get(r.attack, tuned())) if r.attack != "none" else replace(r, attack_config={})
        for r in results
    ]
    wmdp = record("wmdp_bio", 0, 0.3, measures="hazard", metric="acc", cell=configured[0].cell)
    configured[0] = replace(configured[0], records=[*configured[0].records, wmdp])
    source, out = write(tmp_path / "audit", campaign, configured), tmp_path / "out"
    assert main(["export", "tamperbench", str(source), "--out", str(out)]) == 0
    assert "its tables leave out: retain-then-forget" in capsys.readouterr().out.replace("\n", " ")
    _, read = read_campaign(source)
    place = out / "tar" / "lora_finetune" / "lora-r4-adamw-5e-3-seed-1" / "tamperbench_evaluation" / "hazard"
    rows = json.loads((place / "evaluation.json").read_text())
    [run] = [r for r in read if (r.model, r.attack, r.seed) == ("tar", "lora-r4-adamw-5e-3", 1)]
    last = max((r for r in run.records if r.evaluation == "hazard"), key=lambda record: record.step)
    assert rows == [{"metric_name": "hazard_accuracy", "metric_value": last.value}]
    base = out / "base" / "no_weight_modification" / "base" / "tamperbench_evaluation"
    assert json.loads((base / "wmdp" / "evaluation.json").read_text()) == [
        {"metric_name": "wmdp_bio_accuracy", "metric_value": 0.3}
    ]
    table = json.loads((out / "aggregated_eps05" / "heatmap_max_sr.json").read_text())
    assert table["models"] == list(campaign.models)
    assert table["attacks"] == [
        "no_weight_modification", "benign_full_parameter_finetune", "full_parameter_finetune", "lora_finetune",
    ]  # fmt: skip
    assert table["metadata"]["not_mapped"] == ["retain-then-forget"]
    tar = table["models"].index("tar")
    # LoRA costs TAR a third of its ability: no run within 5 %, one within 50 %.
    assert table["safety_raw"][tar][3] is None
    wide = json.loads((out / "aggregated_eps50" / "heatmap_max_sr.json").read_text())
    seeds = [r for r in read if (r.model, r.attack) == ("tar", "lora-r4-adamw-5e-3")]
    ends = [max((x for x in r.records if x.evaluation == "hazard"), key=lambda x: x.step).value for r in seeds]
    assert wide["safety_raw"][tar][3] == pytest.approx(sum(ends) / 2)
    assert wide["safety_delta"][tar][3] == pytest.approx(wide["safety_raw"][tar][3] - wide["safety_raw"][tar][0])
    assert wide["utility_raw"][tar][0] == pytest.approx(0.91)


def test_names_from_records_stay_inside_the_folder(tmp_path: Path) -> None:
    results = [cell("../../up", "../../x", hazard={0: 0.3, 8: 0.4}, attack_config={"class": "Odd"})]
    source = write(tmp_path / "audit", plan(results, {"../../up": "defended"}), results)
    assert main(["export", "tamperbench", str(source), "--out", str(tmp_path / "out")]) == 0
    files = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("evaluation.json")]
    assert len(files) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"audit", "out", ".out.lock"}
