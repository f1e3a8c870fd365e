"""The memory of a study's workers is foretold before the study has made a model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.attacks.finetune import FineTune
from holdfast.core.model_size import count_weights
from holdfast.core.options import Options
from holdfast.runs.study.memory import memory_of_study
from holdfast.runs.study.method import Method
from holdfast.runs.study.red_team import RedTeam
from holdfast.runs.study.study import Part, Study
from tests.conftest import SMALLEST, SmallTestbed


def test_a_worker_of_a_study_needs_what_its_largest_training_or_attack_takes() -> None:
    """Before the study has made a model; what is trained and what is attacked count alike."""
    many_rows = Method(label="many-rows", stages=("rmu",), settings={"retain_batch_size": 256})
    part = Part(
        kind="knowledge", methods=(many_rows,), suite="s", attacks=("low-rank",), tuning_attacks=("refold",),
        found={"low-rank": FineTune(lora_rank=2)},
    )  # fmt: skip
    study = Study(title="t", parts=(part,), worlds=(3, 4), sizes=SMALLEST)
    worker = memory_of_study(study)
    assert (worker.largest.label, worker.unknown) == ("many-rows", ("refold",))
    many = replace(part, methods=(), tuning_attacks=(), found={"low-rank": FineTune(batch_size=512)})
    assert memory_of_study(replace(study, parts=(many,))).largest.label == "low-rank"


def test_a_worker_of_a_red_team_needs_what_the_largest_attack_of_a_family_takes() -> None:
    few_rows = Method(label="rmu", stages=("rmu",), settings={"forget_batch_size": 2, "retain_batch_size": 2})
    team = RedTeam(
        title="t", methods=(few_rows,), targets=("rmu",), families=("full", "low-rank"), trials=1, tuning_world=1, worlds=(2,),
        seeds=(0,), held_out=("reparameterisation",), sizes=SMALLEST,
    )  # fmt: skip
    worker = memory_of_study(team)
    assert (worker.largest.label, worker.unknown) == ("full", ("reparameterisation",))


def test_a_study_on_a_released_model_is_planned_on_that_model(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Path]()

    def placed(folder: Path, *_: object) -> None:
        asked.append(folder)
        shutil.copytree(tiny_testbed.folder, folder, dirs_exist_ok=True)

    monkeypatch.setattr("holdfast.runs.study.world.make_real_testbed", placed)
    monkeypatch.setattr("holdfast.runs.study.memory.write_untrained", None)
    part = Part(kind="real", methods=(), suite="s", attacks=("short",), found={"short": FineTune(lora_rank=2)})
    worker = memory_of_study(Study(title="t", parts=(part,), worlds=(8, 9), options=Options(precision="mixed")))
    assert len(asked) == 1
    assert not asked[0].exists()
    assert worker.largest.host["weights"] >= 4 * count_weights(tiny_testbed.model.folder)
