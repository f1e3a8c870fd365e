"""The memory of a study's workers is foretold before the study has made a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from holdfast.attacks.finetune import FineTune
from holdfast.runs.study.memory import memory_of_study
from holdfast.runs.study.method import Method
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Part, Study
from tests.conftest import SMALLEST


def test_a_worker_of_a_study_needs_what_its_largest_training_or_attack_takes(tmp_path: Path) -> None:
    """Before the study has made a model; what is trained and what is attacked count alike."""
    many_rows = Method(label="many-rows", stages=("rmu",), settings={"retain_batch_size": 256})
    part = Part(
        kind="knowledge", methods=(many_rows,), suite="s", attacks=("low-rank",), tuning_attacks=("refold",),
        found={"low-rank": FineTune(lora_rank=2)},
    )  # fmt: skip
    study = Study(title="t", parts=(part,), worlds=(3, 4), sizes=SMALLEST)
    worker = memory_of_study(study, tmp_path)
    assert (worker.largest.label, worker.unknown) == ("many-rows", ("refold",))
    many = replace(part, methods=(), tuning_attacks=(), found={"low-rank": FineTune(batch_size=512)})
    assert memory_of_study(replace(study, parts=(many,)), tmp_path).largest.label == "low-rank"
    assert not [*tmp_path.iterdir()]


def test_a_worker_of_a_red_team_needs_what_the_largest_attack_of_a_family_takes(tmp_path: Path) -> None:
    team = RedTeam(
        title="t", methods=(Method(label="rmu", stages=("rmu",)),), targets=("rmu",), families=("full", "low-rank"), trials=1,
        tuning_world=1, worlds=(2,), seeds=(0,), held_out=("reparameterisation",), sizes=SMALLEST,
    )  # fmt: skip
    worker = memory_of_study(team, tmp_path)
    assert worker.largest.label in ("full", "rmu")
    assert worker.unknown == ("reparameterisation",)
