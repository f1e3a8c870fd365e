"""The memory that a command will take is foretold without a model, and is what the command then takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from holdfast.attacks.break_then_repair import BreakThenRepair
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.space import collect_families
from holdfast.cli.app import main
from holdfast.cli.memory import memory_of_worker as told
from holdfast.cli.terminal import make_console
from holdfast.core.model_size import count_weights
from holdfast.core.options import Options
from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.evals.memory import TOKENS_AT_ONCE
from holdfast.report.words.memory import worker_sentence
from holdfast.runs.audit import Audit
from holdfast.runs.memory import (
    PROCESS,
    MemoryPlan,
    WorkerMemory,
    free,
    memory_of_search,
    memory_of_worker,
    plan_of_attack,
    plan_of_stages,
)
from holdfast.runs.search.search import Search
from holdfast.runs.stages import Recipe
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.tar import TAR
from tests.conftest import SmallTestbed

_TAR = TAR(
    adversaries=(Adversary(attack=FineTune(batch_size=4)),),
    outer_steps=2,
    inner_steps=2,
    every=2,
    tamper_resistance_batch_size=4,
    retain_batch_size=4,
    outer_optimizer="adamw",
)


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    def load(*arguments: object, **named: object) -> None:
        raise AssertionError("a plan loads no model")

    if request.function is not test_the_foretold_peak_is_within_a_tenth_of_the_measured_one:
        monkeypatch.setattr(Checkpoint, "load", load)


def attacked(bench: SmallTestbed, attack: FineTune | BreakThenRepair, **options: object) -> MemoryPlan:
    return plan_of_attack("it", attack, bench.model.path, bench.folder, options=Options(**options))  # type: ignore[arg-type]


def weights_of(bench: SmallTestbed) -> int:
    """Bytes of the weights in float32."""
    return 4 * count_weights(bench.model.folder)


def test_tar_holds_what_its_algorithm_names(tiny_testbed: SmallTestbed) -> None:
    recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=[("it", _TAR)])
    [plan] = plan_of_stages(recipe)
    assert plan.device == {}
    held = {part: size / weights_of(tiny_testbed) for part, size in plan.host.items() if part != PROCESS}
    once = ("weights", "references", "copies of weights", "sum of gradients")
    assert [held[part] for part in once] == pytest.approx([1.0] * 4, rel=0.01)
    assert held["optimizers"] == pytest.approx(4.0, rel=0.01), "two of AdamW, two states each"


def test_a_worker_of_a_cluster_needs_what_its_largest_cell_takes_and_what_measuring_takes(
    tiny_testbed: SmallTestbed, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = {"low-rank": FineTune(lora_rank=2), "all": FineTune(), "refolds": pick("holdfast.attacks", "refold")}
    audit = Audit(
        model=tiny_testbed.model.path, undefended=tiny_testbed.model.path, domain=tiny_testbed.folder, attacks=attacks
    )
    campaign = audit.planned()
    worker = memory_of_worker(replace(campaign, probes=False))
    assert (worker.largest.label, worker.unknown) == ("all", ("refolds",))
    assert worker.on_host == worker.largest.on_host + worker.measuring
    assert worker.on_device == 0
    gentle = replace(campaign, attacks=(("low-rank", attacks["low-rank"]),))
    assert memory_of_worker(replace(gentle, probes=False)).largest.label == "low-rank"
    assert memory_of_worker(gentle).largest.label == "benign-learning", "a probe that trains all weights counts too"
    words = json.loads((tiny_testbed.model.folder / "config.json").read_bytes())["vocab_size"]
    assert worker.measuring == 2 * 4 * TOKENS_AT_ONCE * words
    asked = told(make_console(), replace(campaign, probes=False))
    assert asked == pytest.approx(1.1 * worker.on_host, rel=0.05)
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(
        r"A worker asks for \d\.\d+ GB on the host: all takes most, measuring up to 0\.\d+ GB beside it", said
    )
    assert "The memory of refolds cannot be foretold and is left out." in said


def test_a_worker_of_a_search_needs_what_the_largest_attack_of_a_family_takes(tiny_testbed: SmallTestbed) -> None:
    families = collect_families()
    largest = families["low-rank"].largest()
    assert isinstance(largest, FineTune)
    assert (largest.batch_size, largest.lora_rank, largest.hazard) == (32, 16, "hazard"), "words are no numbers"
    assert families["difference"].largest() == families["difference"].attack
    search = Search(
        model=tiny_testbed.model.path, domain=tiny_testbed.folder, families=("low-rank", "full", "reparameterisation")
    )
    worker = memory_of_search(search)
    assert (worker.largest.label, worker.unknown) == ("full", ("reparameterisation",))
    first = attacked(tiny_testbed, cast(FineTune, families["full"].attack))
    assert worker.largest.host["activations"] > 1.5 * first.host["activations"], (
        "32 rows, where the first trial has fewer"
    )


def test_beside_a_gpu_measuring_counts_where_the_model_is() -> None:
    plan = MemoryPlan(label="it", device={"weights": 5 * 10**9}, host={PROCESS: 3 * 10**9})
    worker = WorkerMemory(largest=plan, host=4 * 10**9, measuring=10**9, unknown=())
    assert (worker.on_host, worker.on_device) == (4 * 10**9, 6 * 10**9)
    said = worker_sentence(worker.on_host, worker.on_device, "it", worker.measuring, ())
    assert said.startswith("A worker asks for 4.00 GB on the host, and takes 6.00 GB on its GPU: it takes most")


def test_each_knob_takes_less(tiny_testbed: SmallTestbed) -> None:
    attack = FineTune(batch_size=16)
    plain, fewer, again = (
        attacked(tiny_testbed, attack, **knob).host["activations"]
        for knob in ({}, {"micro_batch": 4}, {"checkpointing": True})
    )
    assert fewer < 0.5 * plain
    assert again < 0.7 * plain


@pytest.mark.slow
def test_a_low_rank_attack_has_small_states(tiny_testbed: SmallTestbed) -> None:
    assert attacked(tiny_testbed, FineTune(lora_rank=2)).host["optimizers"] < 0.4 * weights_of(tiny_testbed)


@pytest.mark.slow
def test_lean_precision_halves_the_weights_and_keeps_small_states(tiny_testbed: SmallTestbed) -> None:
    plain, lean = (attacked(tiny_testbed, FineTune(), precision=precision) for precision in ("float32", "lean"))
    assert lean.host["weights"] == pytest.approx(0.5 * plain.host["weights"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["npo", "random-mapping", "undo", "tar-persistent"])
def test_safeguards_of_every_kind_are_rehearsed(preset: str, tiny_testbed: SmallTestbed) -> None:
    safeguard = pick("holdfast.safeguards", preset)
    if preset == "tar-persistent":
        safeguard = replace(safeguard, persistent_adversaries=1, adversaries=safeguard.adversaries[:1])
    [plan] = plan_of_stages(Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=[(preset, safeguard)]))
    assert plan.host["optimizers"] >= 1.9 * plan.host["weights"]


def test_the_commands_print_the_plan_and_write_nothing(
    tiny_testbed: SmallTestbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", tiny_testbed.model.path, "--domain", str(tiny_testbed.folder), "--out", str(tmp_path / "out")]
    assert main(["safeguard", "random-mapping", *common, "--plan"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "random-mapping, GB host" in printed
    assert "optimizers 0.00" in printed
    assert "fits into the" in printed
    assert main(["attack", "full-adamw-1e-3", *common, "--plan", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "memory"
    assert document["stages"][0]["host"]["weights"] == pytest.approx(weights_of(tiny_testbed), rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_rehearsed_is_said(tiny_testbed: SmallTestbed) -> None:
    """SpecDef compares logits before and after its edit."""
    recipe = Recipe(model=tiny_testbed.model, domain=tiny_testbed.folder, stages=["spec-def"])
    with pytest.raises(HoldfastError, match="the memory of a SpecDef cannot be foretold"):
        plan_of_stages(recipe)


def test_what_is_free_is_told() -> None:
    room = free("cpu")
    assert room is None or 0 < room < 2**50


@pytest.mark.slow
def test_the_foretold_peak_is_within_a_tenth_of_the_measured_one(tmp_path: Path) -> None:
    case = "full-parameter, float32"
    code = f"""
import json, sys
from pathlib import Path
from benchmarks.memory import foretold, make, measured
folder = Path({str(tmp_path)!r})
make(folder, "135m")
parts = foretold({case!r}, folder, "cpu")
print(json.dumps([measured({case!r}, folder, "cpu")["peak"], sum(parts["cpu"].values())]))
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    peak, expected = json.loads(run.stdout.splitlines()[-1])
    assert expected == pytest.approx(peak, rel=0.1)
