"""Stages: what a checkpoint is keyed by, what the cache saves, what a kill costs, what the card says."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, PreTrainedModel

import holdfast.engine.walk
from holdfast.attacks.finetune import FineTune
from holdfast.core.domain import DEFENDER_ROLES
from holdfast.core.losses import LOSSES, read_lines
from holdfast.core.options import Options
from holdfast.core.presets import describe, pick
from holdfast.core.profiling import profile_folder
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.data import Data
from holdfast.engine.precision import stored_precision
from holdfast.engine.run import Run
from holdfast.runs.stages import Recipe, build, is_built
from holdfast.safeguards.parts.adversary import Adversary
from holdfast.safeguards.parts.distillation import Distillation
from holdfast.safeguards.parts.objective import RetainLoss
from holdfast.safeguards.random_mapping import RandomMapping
from holdfast.safeguards.tar import TAR
from holdfast.safeguards.undo import UNDO
from tests.conftest import SmallTestbed

ROOT = Path(__file__).parents[2]
MAPPING = RandomMapping(outer_steps=4, forget_batch_size=4, retain_batch_size=4)
RESISTING = TAR(
    outer_steps=3,
    # Its fresh factors are drawn from torch's global generator.
    adversaries=(Adversary(attack=FineTune(batch_size=4, lora_rank=2, learning_rate=5e-3)),),
    inner_steps=4,
    tamper_resistance_batch_size=4,
    retain_batch_size=4,
    outer_learning_rate=1e-3,
)
BOTH = (("random-mapping", MAPPING), ("tar", RESISTING))
Steps = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe_of(testbed: SmallTestbed, **changes: Any) -> Recipe:
    return replace(Recipe(model=testbed.model, domain=testbed.folder, stages=BOTH), **changes)


def built(recipe: Recipe, out: Path | None = None) -> tuple[Checkpoint, Steps]:
    """The checkpoint, and the outer steps that it took."""
    steps: Steps = []
    folder = build(recipe, out, lambda step, total: steps.append((step, total)))
    return Checkpoint(str(folder)), steps


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# Keys


def test_a_prefix_of_the_stages_has_the_key_of_that_prefix(tiny_testbed: SmallTestbed) -> None:
    first, both = recipe_of(tiny_testbed).keys()
    assert recipe_of(tiny_testbed, stages=BOTH[:1]).keys() == [first]
    assert first != both


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"options": Options(precision="mixed")},
        {"options": Options(precision="lean")},
        {"options": Options(device="cuda")},
        {"stages": (("random-mapping", replace(MAPPING, outer_steps=5)), BOTH[1])},
        {"stages": (("random-mapping", replace(MAPPING, retain=RetainLoss(representation_weight=2.0))), BOTH[1])},
        {"stages": BOTH[::-1]},
    ],
    ids=["seed", "mixed", "lean", "kind of device", "a field", "a nested field", "order"],
)
def test_what_changes_the_first_stage_changes_every_key(changes: dict[str, Any], tiny_testbed: SmallTestbed) -> None:
    before, after = recipe_of(tiny_testbed).keys(), recipe_of(tiny_testbed, **changes).keys()
    assert not set(before) & set(after)


def test_what_changes_a_later_stage_changes_its_key_alone(tiny_testbed: SmallTestbed) -> None:
    adversary = Adversary(attack=FineTune(batch_size=5))
    other = recipe_of(tiny_testbed, stages=(BOTH[0], ("tar", replace(RESISTING, adversaries=(adversary,)))))
    assert [a == b for a, b in zip(recipe_of(tiny_testbed).keys(), other.keys(), strict=True)] == [True, False]


def test_model_and_original_model_are_part_of_the_key(tiny_testbed: SmallTestbed) -> None:
    model, other = tiny_testbed.model, tiny_testbed.never_exposed
    recipes = [recipe_of(tiny_testbed, model=a, base=b) for a in (model, other) for b in (model, other)]
    assert len({recipe.keys()[0] for recipe in recipes}) == 4
    assert recipe_of(tiny_testbed).keys() == recipes[0].keys()  # the model is its own original
    assert recipe_of(tiny_testbed, model=other).keys() == recipes[3].keys()


def test_where_files_lie_and_the_names_of_presets_are_no_part_of_the_key(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    copy = SmallTestbed(tmp_path / "elsewhere")
    shutil.copytree(tiny_testbed.folder, copy.folder)
    stages = tuple((f"my-{name}", stage) for name, stage in BOTH)
    moved = recipe_of(copy, stages=stages, options=Options(trust_remote_code=True))
    assert moved.keys() == recipe_of(tiny_testbed).keys()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", '{"eos_token_id": [2, 3]}'),
        ("additional_chat_templates/tools.jinja", "{{ messages }}"),
    ],
)
def test_what_acts_when_the_model_is_used_is_part_of_the_key(
    name: str, content: str, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_testbed.model.path, model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text(content)
    other = recipe_of(tiny_testbed, model=Checkpoint(str(model)), base=tiny_testbed.model)
    assert not set(other.keys()) & set(recipe_of(tiny_testbed).keys())


def test_whether_the_model_s_own_code_runs_is_part_of_the_key(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_testbed.model.path, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    (model / "code.py").write_text("")
    keys = [
        recipe_of(tiny_testbed, model=Checkpoint(str(model)), options=Options(trust_remote_code=trusted)).keys()
        for trusted in (False, True)
    ]
    assert not set(keys[0]) & set(keys[1])


@pytest.mark.parametrize(
    ("role", "changes"),
    [*((role, True) for role in DEFENDER_ROLES), ("attack", False), ("benign", False), ("hazard_heldout", False)],
)
def test_the_key_changes_with_the_defender_s_data_and_no_others(
    role: str, changes: bool, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    shutil.copytree(tiny_testbed.folder / "data", tmp_path / "data")
    shutil.copy(tiny_testbed.folder / "domain.toml", tmp_path)
    with (tmp_path / "data" / f"{role}.jsonl").open("a") as file:
        file.write('{"text": "one row more"}\n')
    other = recipe_of(tiny_testbed, domain=tmp_path)
    assert (other.keys() != recipe_of(tiny_testbed).keys()) == changes


def test_the_length_that_rows_are_cut_to_is_part_of_the_key(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    shutil.copytree(tiny_testbed.folder / "data", tmp_path / "data")
    toml = (tiny_testbed.folder / "domain.toml").read_text()
    (tmp_path / "domain.toml").write_text(toml)
    assert recipe_of(tiny_testbed, domain=tmp_path).keys() == recipe_of(tiny_testbed).keys()
    (tmp_path / "domain.toml").write_text(toml.replace("max_length = 16", "max_length = 12"))
    assert recipe_of(tiny_testbed, domain=tmp_path).keys() != recipe_of(tiny_testbed).keys()


# The cache


def test_a_shared_first_stage_is_trained_once(tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path) -> None:
    first, steps = built(recipe_of(tiny_testbed, stages=BOTH[:1]))
    assert steps == [(step, 4) for step in range(5)]
    second, steps = built(recipe_of(tiny_testbed))
    assert steps == [(step, 7) for step in range(4, 8)]
    assert names(own_cache / "stages") == sorted(recipe_of(tiny_testbed).keys())
    assert len({first.digest, second.digest, tiny_testbed.model.digest}) == 3

    _, steps = built(recipe_of(tiny_testbed), tmp_path / "out")
    assert steps == [(7, 7)]
    assert Checkpoint(str(tmp_path / "out")).digest == second.digest


@pytest.mark.parametrize("first", ["rmu", "undo", "max-entropy", "circuit-breakers"])
def test_tar_goes_on_from_any_first_stage(first: str, tiny_testbed: SmallTestbed) -> None:
    safeguard: Any = replace(pick("holdfast.safeguards", first), outer_steps=2)
    alone, _ = built(recipe_of(tiny_testbed, stages=((first, safeguard),)))
    both, steps = built(recipe_of(tiny_testbed, stages=((first, safeguard), BOTH[1])))
    assert steps == [(step, 5) for step in range(2, 6)], "the first stage is there already"
    assert [stage["preset"] for stage in both.card["stages"]] == [first, "tar"]
    assert both.card["base"]["digest"] == tiny_testbed.model.digest, "retain losses compare with the untouched model"
    assert len({alone.digest, both.digest, tiny_testbed.model.digest}) == 3


def test_a_checkpoint_from_the_cache_names_the_models_it_was_asked_for(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    """The cache goes by content, so it may have been filled from copies that are gone by now."""
    copied = tmp_path / "copy"
    shutil.copytree(tiny_testbed.folder / "model", copied)
    first, _ = built(recipe_of(tiny_testbed, model=Checkpoint(str(copied)), base=Checkpoint(str(copied))))
    shutil.rmtree(copied)
    second, _ = built(recipe_of(tiny_testbed), tmp_path / "out")
    assert second.digest == first.digest
    held = second.card
    for name in ("model", "base"):
        assert held[name] == {"path": tiny_testbed.model.path, "digest": tiny_testbed.model.digest}


def test_a_checkpoint_from_the_cache_names_the_stages_as_its_recipe_does(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    """The name of a preset is no part of what the cache goes by, and a name may say what `--set` changed."""
    built(recipe_of(tiny_testbed, stages=BOTH[:1]))
    mine, steps = built(recipe_of(tiny_testbed, stages=(("mine", BOTH[0][1]),)), tmp_path / "out")
    assert steps == [(4, 4)], "the cache has it"
    assert [stage["preset"] for stage in mine.card["stages"]] == ["mine"]
    assert {line.preset for line in read_lines(tmp_path / "out" / LOSSES)} == {"mine"}
    assert "mine" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_same_recipe_gives_the_same_weights_whether_the_cache_helped_or_not(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(recipe_of(tiny_testbed, stages=BOTH[:1]))
    helped, _ = built(recipe_of(tiny_testbed))
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "another"))
    alone, steps = built(recipe_of(tiny_testbed))
    assert steps == [(0, 7), *((step, 7) for step in range(1, 8))]
    assert alone.digest == helped.digest
    other, _ = built(recipe_of(tiny_testbed, seed=1))
    assert other.digest != helped.digest


def test_an_output_folder_gets_a_copy_that_loads_by_itself(
    tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path
) -> None:
    out, _ = built(recipe_of(tiny_testbed, stages=BOTH[:1]), tmp_path / "out")
    assert Path(out.path) == tmp_path / "out"
    shutil.rmtree(own_cache)
    model, loading = AutoModelForCausalLM.from_pretrained(out.path, output_loading_info=True)
    assert not any(loading.values())
    assert isinstance(model, PreTrainedModel)
    out.load_both()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def bit_flipped(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5000] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize("damage", [emptied, truncated, bit_flipped])
def test_a_damaged_stage_in_the_cache_is_made_anew_with_a_word(
    damage: Callable[[Path], None],
    tiny_testbed: SmallTestbed,
    own_cache: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = recipe_of(tiny_testbed, stages=BOTH[:1])
    good, _ = built(recipe, tmp_path / "good")
    damage(own_cache / "stages" / recipe.keys()[0])
    again, steps = built(recipe, tmp_path / "again")
    assert "is damaged or has no seal; it is made anew" in caplog.text
    assert steps == [(step, 4) for step in range(5)]
    assert again.digest == good.digest
    assert names(tmp_path / "again") == names(tmp_path / "good")


def test_a_second_stage_is_not_trained_on_a_damaged_first(
    tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_testbed)
    built(recipe_of(tiny_testbed, stages=BOTH[:1]))
    bit_flipped(own_cache / "stages" / recipe.keys()[0])
    both, steps = built(recipe)
    assert steps[0] == (0, 7)
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "another"))
    assert built(recipe)[0].digest == both.digest


def test_a_model_counts_as_built_while_its_weights_are_those_of_its_card(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    recipe, out = recipe_of(tiny_testbed, stages=BOTH[:1]), tmp_path / "out"
    assert not is_built(recipe, out)
    built(recipe, out)
    assert is_built(recipe, out)
    assert not is_built(replace(recipe, seed=1), out)
    bit_flipped(out)
    assert not is_built(recipe, out)
    (out / "model.safetensors").unlink()
    assert not is_built(recipe, out)


@pytest.fixture
def in_bfloat16(tiny_testbed: SmallTestbed, tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "bfloat16"
    shutil.copytree(tiny_testbed.model.path, folder)
    tiny_testbed.model.load(precision="bfloat16").save_pretrained(folder)
    return Checkpoint(str(folder))


@pytest.mark.parametrize(("saved_as", "kept"), [(None, "bfloat16"), ("float32", "float32")])
def test_a_safeguarded_model_keeps_the_precision_of_its_files_unless_told_otherwise(
    saved_as: Any, kept: str, in_bfloat16: Checkpoint, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_testbed, model=in_bfloat16, stages=BOTH[:1], saved_as=saved_as)
    out, _ = built(recipe, tmp_path / "out")
    assert set(stored_precision(out.folder, "float32").values()) == {kept}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == kept


def test_the_precision_of_the_saved_weights_is_part_of_the_key_where_it_is_not_that_of_the_run(
    in_bfloat16: Checkpoint, tiny_testbed: SmallTestbed
) -> None:
    plain = recipe_of(tiny_testbed)
    assert replace(plain, saved_as="float32").keys() == plain.keys()
    assert not set(replace(plain, saved_as="bfloat16").keys()) & set(plain.keys())
    recipe = recipe_of(tiny_testbed, model=in_bfloat16)
    assert not set(replace(recipe, saved_as="float32").keys()) & set(recipe.keys())


def test_a_model_that_does_not_come_back_as_it_was_leaves_no_checkpoint(
    tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PreTrainedModel.save_pretrained

    def save(self: PreTrainedModel, folder: Path, **options: Any) -> None:
        plain(self, folder, **options)
        bit_flipped(Path(folder))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(HoldfastError, match="is not the same when it is saved and loaded again"):
        build(recipe_of(tiny_testbed, stages=BOTH[:1]), tmp_path / "out")
    assert not names(own_cache / "stages")
    assert not (tmp_path / "out").exists()


def test_licence_policy_processor_and_origin_go_with_a_safeguarded_model_from_its_own_folder(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    outs = []
    for name in ("first", "second"):
        model = tmp_path / name
        shutil.copytree(tiny_testbed.model.path, model)
        (model / "README.md").write_text(
            f"---\nlicense: other\nlicense_name: {name}\nbase_model: owner/{name}\n---\n# M\n"
        )
        for path in ("LICENSE", "USE_POLICY.md", "preprocessor_config.json"):
            (model / path).write_text(name)
        for path in ("pytorch_model.bin", "model.gguf", "trainer_state.json", ".hidden"):
            (model / path).write_text(name)
        (model / "NOTICE").symlink_to(tmp_path / "secret")
        (tmp_path / "secret").write_text("secret")
        out, _ = built(recipe_of(tiny_testbed, model=Checkpoint(str(model)), stages=BOTH[:1]), tmp_path / f"{name}-out")
        outs.append(out)
        folder = Path(out.path)
        assert [(folder / path).read_text() for path in ("LICENSE", "USE_POLICY.md", "preprocessor_config.json")] == [
            name
        ] * 3
        assert not {"pytorch_model.bin", "model.gguf", "trainer_state.json", ".hidden", "NOTICE"} & set(names(folder))
        head = ModelCard.load(folder / "README.md").data.to_dict()
        assert (head["license"], head["license_name"], head["base_model"]) == ("other", name, f"owner/{name}")
        assert head["tags"] == ["holdfast", "tamper-resistance"]
    assert outs[0].card["key"] == outs[1].card["key"], "the second came from the cache"


def test_a_readme_whose_head_cannot_be_read_is_refused_before_training(
    tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_testbed.model.path, model)
    (model / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(HoldfastError, match=r"the head of .*README\.md cannot be read .*; mend the file or remove it"):
        build(recipe_of(tiny_testbed, model=Checkpoint(str(model))), tmp_path / "out")
    assert not names(own_cache / "stages")


# Kills


class Killed(BaseException):
    """Stands for a kill."""


def kill_at(last: int) -> Callable[[int, int], None]:
    def on_step(step: int, total: int) -> None:
        if step == last:
            raise Killed

    return on_step


@pytest.mark.parametrize("last", [3, 4, 6], ids=["in the first stage", "at its end", "in the second stage"])
def test_a_killed_build_goes_on_to_the_very_same_weights(
    last: int, tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)
    recipe = recipe_of(tiny_testbed)
    with pytest.raises(Killed):
        build(recipe, tmp_path / "out", kill_at(last))
    assert not (tmp_path / "out").exists()
    first, second = recipe.keys()
    begun = first if last <= 4 else second
    assert names(own_cache / "stages") == sorted([f"{begun}.losses", f"{begun}.part", *([first] if last > 4 else [])])
    resumed, steps = built(recipe, tmp_path / "out")
    # The step that was not saved is taken again.
    assert steps == [(0 if last <= 4 else 4, 7), *((step, 7) for step in range(last, 8))]
    assert names(own_cache / "stages") == sorted([first, second])
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "another"))
    whole, _ = built(recipe)
    assert resumed.digest == whole.digest
    assert (resumed.folder / LOSSES).read_bytes() == (whole.folder / LOSSES).read_bytes()
    assert spent(resumed) == spent(whole)


def spent(model: Checkpoint) -> list[tuple[int, float]]:
    """Tokens and FLOPs of each stage."""
    return [(stage["tokens"], stage["flops"]) for stage in model.card["stages"]]


def test_a_killed_build_writes_its_text_once(
    tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Distillation(generated_rows=40, batch_size=4, learns="text")
    recipe = recipe_of(tiny_testbed, stages=[("undo", UNDO(outer_steps=3, distillation=text))])
    whole, _ = built(recipe)
    monkeypatch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "another"))
    with pytest.raises(Killed):
        build(recipe, on_step=kill_at(3))
    monkeypatch.setattr("holdfast.safeguards.parts.distillation.generate_rows", None)
    resumed, _ = built(recipe)
    assert resumed.digest == whole.digest
    assert spent(resumed) == spent(whole)


def test_a_build_that_was_killed_after_its_last_update_still_tells_the_losses(
    tiny_testbed: SmallTestbed, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, save = recipe_of(tiny_testbed, stages=BOTH[:1]), Run.save

    def saved(self: Run, path: Path, model: Any, step: int, key: str) -> None:
        save(self, path, model, step, key)
        if step == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)
        patch.setattr(Run, "save", saved)
        with pytest.raises(Killed):
            build(recipe)
    resumed, steps = built(recipe)
    assert steps == [(0, 4)]
    assert resumed.card["stages"][0]["last losses"] == read_lines(resumed.folder / LOSSES)[-1].losses


def build_until_killed(folder: str) -> None:
    holdfast.engine.walk.SAVE_EVERY = 0.0

    def on_step(step: int, total: int) -> None:
        print(step, flush=True)
        time.sleep(600 if step == 3 else 0)

    build(recipe_of(SmallTestbed(Path(folder)), stages=BOTH[:1]), on_step=on_step)


def test_a_build_survives_a_real_kill(
    tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; from tests.runs.test_stages import build_until_killed; build_until_killed(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tiny_testbed.folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(4)] == ["0\n", "1\n", "2\n", "3\n"]
        process.kill()
    recipe = recipe_of(tiny_testbed, stages=BOTH[:1])
    [key] = recipe.keys()
    assert names(own_cache / "stages") == [f".{key}.lock", f"{key}.losses", f"{key}.part"]
    with (own_cache / "stages" / f"{key}.losses").open("a") as stream:
        stream.write('{"stage": 1, "preset": "random-map')  # as a kill within a write leaves it
    resumed, steps = built(recipe)
    assert steps == [(0, 4), (3, 4), (4, 4)]
    assert names(own_cache / "stages") == [key]
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "another"))
    whole, _ = built(recipe)
    assert resumed.digest == whole.digest
    lines = read_lines(resumed.folder / LOSSES)
    assert [(line.stage, line.preset, line.step) for line in lines] == [
        (1, "random-mapping", step) for step in range(1, 5)
    ]
    assert lines == read_lines(whole.folder / LOSSES)
    assert lines[-1].losses == resumed.card["stages"][0]["last losses"]


def test_the_losses_of_every_stage_go_with_the_model(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []
    build(recipe_of(tiny_testbed), tmp_path / "out", on_losses=lambda losses: seen.append(dict(losses)))
    lines = read_lines(tmp_path / "out" / LOSSES)
    assert [(line.stage, line.preset, line.step) for line in lines] == [
        *((1, "random-mapping", step) for step in range(1, 5)),
        *((2, "tar", step) for step in range(1, 4)),
    ]
    assert [line.losses for line in lines] == seen
    # A safeguard on top of a safeguarded model goes on counting, and keeps what the model brought.
    model = Checkpoint(str(tmp_path / "out"))
    more, _ = built(recipe_of(tiny_testbed, model=model, stages=BOTH[:1]), tmp_path / "more")
    assert read_lines(more.folder / LOSSES)[: len(lines)] == lines
    assert [line.stage for line in read_lines(more.folder / LOSSES)[len(lines) :]] == [3] * 4


def test_a_stage_leaves_a_trace_beside_the_model(tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path) -> None:
    build(recipe_of(tiny_testbed, stages=BOTH[:1], options=Options(profile=True)), tmp_path / "out")
    assert names(profile_folder(tmp_path / "out", model=True)) == ["stage-1.json.gz", "stage-1.txt"]


def test_a_part_of_another_recipe_is_not_gone_on_with(tiny_testbed: SmallTestbed, own_cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.engine.walk.SAVE_EVERY", 0.0)
        with pytest.raises(Killed):
            build(recipe_of(tiny_testbed), on_step=kill_at(3))
    other = recipe_of(tiny_testbed, seed=1, stages=BOTH[:1])
    [part] = (own_cache / "stages").glob("*.part")
    part.rename(part.with_name(f"{other.keys()[0]}.part"))
    _, steps = built(other)
    assert steps == [(step, 4) for step in range(5)]


# Divergence


class LosesItsWeights(RandomMapping):
    """One weight becomes infinite in the last step, while the losses are still finite."""

    def steps(self, model: PreTrainedModel, data: Data, run: Run) -> Iterator[Mapping[str, float]]:
        for step, losses in enumerate(super().steps(model, data, run), start=1):
            if step == self.outer_steps:
                model.get_parameter("model.norm.weight").detach()[0] = float("inf")
            yield losses


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (replace(MAPPING, learning_rate=1e30), "loss became nan at step 2"),
        (LosesItsWeights(**vars(MAPPING)), "the model to be saved are not finite"),
    ],
    ids=["loss", "weights"],
)
def test_a_stage_that_diverges_leaves_no_checkpoint(
    stage: RandomMapping, message: str, tiny_testbed: SmallTestbed, own_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(NonFinite, match=message):
        build(recipe_of(tiny_testbed, stages=(("it", stage), BOTH[1])), tmp_path / "out")
    assert names(own_cache / "stages") == []
    assert not (tmp_path / "out").exists()


def test_a_second_stage_that_diverges_leaves_the_first(tiny_testbed: SmallTestbed, own_cache: Path) -> None:
    stages = (BOTH[0], ("it", replace(MAPPING, learning_rate=1e30)))
    recipe = recipe_of(tiny_testbed, stages=stages)
    with pytest.raises(NonFinite):
        build(recipe)
    assert names(own_cache / "stages") == recipe.keys()[:1]


# The card and the original model


def test_the_card_tells_what_made_the_checkpoint(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_testbed, seed=7)
    out, _ = built(recipe, tmp_path / "out")
    card = out.card
    assert card["key"] == recipe.keys()[-1]
    assert card["seed"] == 7
    assert card["domain"] == "testbed-5"
    assert card["data"] == tiny_testbed.domain.digest(*DEFENDER_ROLES)
    made_from = {"path": str(Path(tiny_testbed.model.path).resolve()), "digest": tiny_testbed.model.digest}
    assert (card["model"], card["base"]) == (made_from, made_from)
    assert [stage["preset"] for stage in card["stages"]] == ["random-mapping", "tar"]
    for stage, (_, safeguard) in zip(card["stages"], BOTH, strict=True):
        assert stage["config"] == json.loads(json.dumps(describe(safeguard)))
        assert stage["seconds"] >= 0
    assert set(card["stages"][0]["last losses"]) == {"mapping loss", "retain loss"}
    assert set(card["stages"][1]["last losses"]) == {"tamper-resistance loss", "retain loss"}
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "random-mapping → tar, on the domain *testbed-5*, seed 7" in readme
    assert tiny_testbed.model.digest[:16] in readme
    assert all(content[:16] in readme for content in card["data"].values())


def test_the_original_is_what_is_given_else_what_the_card_names_else_the_model(
    tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    assert recipe_of(tiny_testbed).original() == tiny_testbed.model
    stacked = recipe_of(tiny_testbed, model=built(recipe_of(tiny_testbed, stages=BOTH[:1]), tmp_path / "first")[0])
    assert stacked.original().path == str(Path(tiny_testbed.model.path).resolve())
    assert replace(stacked, base=tiny_testbed.never_exposed).original() == tiny_testbed.never_exposed


@pytest.mark.parametrize("how", ["gone", "changed", "emptied"])
def test_an_original_that_is_not_there_any_more_must_be_named(
    how: str, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    model, original = tmp_path / "model", tmp_path / "original"
    for folder in (model, original):
        shutil.copytree(tiny_testbed.model.path, folder)
    base = {"path": str(original), "digest": tiny_testbed.model.digest}
    (model / "holdfast.json").write_text(json.dumps({"base": base, "stages": []}))
    recipe = recipe_of(tiny_testbed, model=Checkpoint(str(model)))
    assert recipe.original().path == str(original)
    if how == "changed":
        shutil.copy(Path(tiny_testbed.never_exposed.path) / "model.safetensors", original)
    else:
        shutil.rmtree(original)
        if how == "emptied":
            original.mkdir()
    for ask in (recipe.original, recipe.keys, functools.partial(build, recipe)):
        with pytest.raises(HoldfastError, match=r"original, named in the model's card, is gone or changed.*--base"):
            ask()
    assert replace(recipe, base=tiny_testbed.model).original() == tiny_testbed.model


def test_a_stage_on_a_safeguarded_model_compares_with_the_true_original(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = built(recipe_of(tiny_testbed, stages=BOTH[:1]), tmp_path / "first")
    loaded: list[str] = []
    load = Checkpoint.load

    def seen(self: Checkpoint, *arguments: Any) -> PreTrainedModel:
        loaded.append(self.path)
        return load(self, *arguments)

    monkeypatch.setattr(Checkpoint, "load", seen)
    stacked, steps = built(recipe_of(tiny_testbed, model=first, stages=BOTH[1:]), tmp_path / "second")
    original = str(Path(tiny_testbed.model.path).resolve())
    *loaded, saved = loaded
    assert loaded == [first.path, original]
    assert Path(saved).parent == Path(os.environ["HOLDFAST_CACHE"]) / "stages", "what was saved is read back"
    assert steps == [(step, 3) for step in range(4)]
    assert stacked.card["base"] == {"path": original, "digest": tiny_testbed.model.digest}
    assert stacked.card["model"] == {"path": first.path, "digest": first.digest}
    assert [stage["preset"] for stage in stacked.card["stages"]] == ["random-mapping", "tar"]
    # It is the same as to make both stages in one go.
    assert stacked.digest == built(recipe_of(tiny_testbed))[0].digest
    # And not the same as to compare with something else.
    elsewhere = recipe_of(tiny_testbed, model=first, stages=BOTH[1:], base=tiny_testbed.never_exposed)
    assert built(elsewhere)[0].digest != stacked.digest


def test_missing_data_of_the_defender_are_named(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    shutil.copytree(tiny_testbed.folder / "data", tmp_path / "data")
    toml = (tiny_testbed.folder / "domain.toml").read_text()
    (tmp_path / "domain.toml").write_text(toml.replace('[data.retain]\nfile = "data/retain.jsonl"\n', ""))
    with pytest.raises(HoldfastError, match=r"\[data\.retain\]"):
        build(recipe_of(tiny_testbed, domain=tmp_path))
