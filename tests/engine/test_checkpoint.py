"""Checkpoints: what is written others can read, and what is damaged, foreign or dangerous is not loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from holdfast.attacks.finetune import FineTune
from holdfast.campaign.cells import Campaign, Model
from holdfast.campaign.exposure import family_in_training, seen_in_training
from holdfast.core import files
from holdfast.core.cache import copy_entry, new_entry
from holdfast.core.files import atomic_folder
from holdfast.core.folder import CARD
from holdfast.core.presets import describe
from holdfast.core.types import HoldfastError, NonFinite
from holdfast.engine.anatomy import as_attacker, decoder_layers
from holdfast.engine.checkpoint import Checkpoint, check_finite, save_checkpoint
from holdfast.engine.stream import hidden_states, residual_stream
from tests.conftest import SmallTestbed
from tests.core.characters import CHAT, character_tokenizer
from tests.core.test_records import spoilt

IDS = torch.tensor([[1, 10, 20, 30], [1, 11, 21, 31]])


def llama(**changes: Any) -> PreTrainedModel:
    sizes = {
        "vocab_size": 104,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()


def tied_llama() -> PreTrainedModel:
    return llama(tie_word_embeddings=True)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=104, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()


every_architecture = pytest.mark.parametrize("make", [llama, tied_llama, gpt2])


def saved(folder: Path, model: PreTrainedModel | None = None, template: str | None = None) -> Checkpoint:
    save_checkpoint(model or llama(), character_tokenizer(template), folder, {"seed": 3}, "# A model\n")
    return Checkpoint(str(folder))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def rewrite_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@every_architecture
def test_a_checkpoint_loads_with_plain_transformers_to_the_same_logits(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model = make()
    saved(tmp_path, model, CHAT)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("some text\n") == character_tokenizer()("some text\n")
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("</s>", CHAT)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in tmp_path.iterdir())


@every_architecture
def test_a_checkpoint_is_loaded_in_evaluation_mode_as_it_was_saved(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    model = make()
    loaded, tokenizer = saved(tmp_path, model).load_both()
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(loaded), logits(model))
    assert len(tokenizer) == 104


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checkpoint_is_loaded_in_the_precision_that_is_asked_for(dtype: Any, tmp_path: Path) -> None:
    model = saved(tmp_path).load(precision=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_the_card_has_two_halves(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    assert checkpoint.card == {"seed": 3}
    assert (tmp_path / "README.md").read_text() == "# A model\n"
    (tmp_path / CARD).unlink()
    assert checkpoint.card == {}


CARD_OF_TAR: dict[str, Any] = {
    "holdfast": "1.0",
    "key": "k",
    "model": {"path": "p", "digest": "d"},
    "base": {"path": "p", "digest": "d"},
    "seed": 3,
    "stages": [
        {
            "preset": "tar",
            "config": {
                "class": "TAR",
                "adversaries": [
                    {
                        "class": "Adversary",
                        "attack": describe(FineTune()),
                        "learning_rates": [1e-3],
                        "switch": [1.0, 2.0],
                    }
                ],
            },
            "seconds": 1.5,
            "tokens": 100,
            "flops": 1e9,
        }
    ],
}


def used(card: dict[str, Any]) -> None:
    """What commands do with a card."""
    seen_in_training(card, FineTune())
    family_in_training(card, FineTune())
    str(card.get("key")) + card.get("base", {}).get("path", "") + card.get("base", {}).get("digest", "")
    for stage in card.get("stages", []):
        sum(stage.get(cost, 0) for cost in ("seconds", "tokens", "flops"))
        assert stage["preset"].join("ab")


@pytest.mark.situation("damaged file", "a field of another type")
def test_a_card_with_a_field_of_another_type_is_used_or_refused_with_its_name(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    checkpoint = saved(tmp_path)
    refused, tried = [], 0
    for path, changed in spoilt(CARD_OF_TAR):
        (tmp_path / CARD).write_text(json.dumps(changed))
        tried += 1
        try:
            used(checkpoint.card)
        except HoldfastError as error:
            refused.append((path.split(".")[0], str(error)))
    record_property("situations", tried)
    assert len(refused) > 100
    assert all(f"{CARD} is damaged ({field}" in says for field, says in refused)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b"3"])
def test_a_damaged_card_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    (tmp_path / CARD).write_bytes(content)
    with pytest.raises(HoldfastError, match=rf"{CARD} is damaged .*; remove it or restore the checkpoint"):
        _ = checkpoint.card


def change_a_weight(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: tensors["model.norm.weight"].add_(torch.eye(16)[0] * 1e-3))


def change_the_config(folder: Path) -> None:
    rewrite_json(folder / "config.json", rms_norm_eps=1e-4)


@pytest.mark.parametrize("change", [change_a_weight, change_the_config])
def test_the_digest_changes_with_weights_and_config(change: Callable[[Path], None], tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    before = checkpoint.digest, logits(checkpoint.load())
    change(tmp_path)
    assert checkpoint.digest != before[0]
    assert not torch.equal(logits(checkpoint.load()), before[1])


def test_the_digest_depends_on_neither_path_nor_version_nor_card(tmp_path: Path) -> None:
    digest = saved(tmp_path / "here").digest
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    rewrite_json(tmp_path / "there" / "config.json", transformers_version="4.0.0")
    rewrite_json(tmp_path / "there" / CARD, seed=4)
    (tmp_path / "there" / "README.md").write_text("another")
    assert Checkpoint(str(tmp_path / "there")).digest == digest
    assert saved(tmp_path / "again").digest == digest


def test_the_digest_of_a_tokenizer_is_of_its_files_and_not_of_the_weights(tmp_path: Path) -> None:
    digest = saved(tmp_path / "here").tokenizer_digest
    assert saved(tmp_path / "there", gpt2()).tokenizer_digest == digest
    assert saved(tmp_path / "chat", template=CHAT).tokenizer_digest != digest


@pytest.mark.parametrize(
    "changes", [{"eos_token": "<unk>"}, {"chat_template": CHAT}], ids=["the end token", "an old chat template"]
)
def test_the_digest_of_a_tokenizer_covers_the_settings_that_decide_what_rows_become(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = saved(tmp_path)
    before = checkpoint.tokenizer_digest, checkpoint.load_tokenizer()
    rewrite_json(tmp_path / "tokenizer_config.json", **changes)
    after = checkpoint.load_tokenizer()
    assert (after.eos_token_id, after.chat_template) != (before[1].eos_token_id, before[1].chat_template)
    assert checkpoint.tokenizer_digest != before[0]


def sharded(folder: Path) -> Checkpoint:
    model = llama()
    model.save_pretrained(folder, max_shard_size="20KB")
    character_tokenizer(None).save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return Checkpoint(str(folder))


def reindex(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    change(table["weight_map"])
    path.write_text(json.dumps(table))


def test_the_digest_of_a_model_in_one_file_stays_what_it_was_in_records_of_earlier_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "transformers_version": "5.0.0"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert Checkpoint(str(tmp_path)).digest == "92edf3dd05526911a786a2fbc7ff803688db6568f9debc70d402969ffa6a7029"


def test_the_digest_is_of_the_files_that_are_loaded_and_of_the_index_that_names_them(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path)
    before, weights = checkpoint.digest, logits(checkpoint.load())
    save_file({"lm_head.weight": torch.zeros(104, 16)}, tmp_path / "consolidated.safetensors")
    assert checkpoint.digest == before
    torch.testing.assert_close(logits(checkpoint.load()), weights)
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    shutil.copy(tmp_path / shards[0], tmp_path / "other.safetensors")

    def move(names: dict[str, str]) -> None:
        names.update({name: "other.safetensors" for name, shard in names.items() if shard == shards[0]})

    reindex(tmp_path, move)
    assert checkpoint.digest != before


def test_a_shard_in_a_folder_below_is_part_of_the_digest(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path)
    (tmp_path / "below").mkdir()
    shard = min(path.name for path in tmp_path.glob("model-*.safetensors"))
    (tmp_path / shard).rename(tmp_path / "below" / shard)
    reindex(tmp_path, lambda names: names.update({n: f"below/{s}" for n, s in names.items() if s == shard}))
    before = checkpoint.digest
    tensors = load_file(tmp_path / "below" / shard)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "below" / shard)
    assert checkpoint.digest != before


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", "a/../../b.safetensors"])
def test_an_index_that_points_outside_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path / "model")
    reindex(tmp_path / "model", lambda names: names.update({"model.norm.weight": name}))
    for read in (checkpoint.load, checkpoint.check, lambda: checkpoint.digest):
        with pytest.raises(HoldfastError, match=r"index\.json names .*, which is outside its folder; restore"):
            read()


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": 1}}', b"\xff"])
def test_a_damaged_index_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(HoldfastError, match=r"index\.json is damaged \(.*\); restore the checkpoint"):
        _ = checkpoint.digest


def test_weights_that_stand_elsewhere_are_refused_for_their_digest_would_not_be_that_of_what_is_loaded(
    tmp_path: Path,
) -> None:
    adapter, config = saved(tmp_path / "adapter"), saved(tmp_path / "config")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    rewrite_json(tmp_path / "config" / "config.json", transformers_weights="other.safetensors")
    for checkpoint in (adapter, config):
        for read in (checkpoint.load, checkpoint.check, lambda checkpoint=checkpoint: checkpoint.digest):
            with pytest.raises(HoldfastError, match="names other weights beside its own"):
                read()


def test_the_digest_covers_settings_of_generation_and_code_where_they_act(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    (tmp_path / "modeling.py").write_text("unused = 1")
    digests = [checkpoint.digest]
    rewrite_json(tmp_path / "generation_config.json", transformers_version="4.0.0")
    assert checkpoint.digest == digests[0]
    rewrite_json(tmp_path / "generation_config.json", eos_token_id=[2, 7])
    digests.append(checkpoint.digest)
    rewrite_json(tmp_path / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    digests.append(checkpoint.digest)
    (tmp_path / "modeling.py").write_text("used = 2")
    digests.append(checkpoint.digest)
    assert len(set(digests)) == 4
    assert (checkpoint.runs_code(False), checkpoint.runs_code(True)) == ({}, {"remote_code": True})


def test_a_tokenizer_that_is_loaded_and_saved_again_has_the_same_digest_offline_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = saved(tmp_path / "first")
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("transformers.tokenization_utils_base.is_offline_mode", lambda offline=offline: offline)
        model, tokenizer = checkpoint.load_both()
        save_checkpoint(model, tokenizer, tmp_path / str(offline), {}, "")
        written = (tmp_path / str(offline) / "tokenizer_config.json").read_text()
        assert "local_files_only" in written
        assert Checkpoint(str(tmp_path / str(offline))).tokenizer_digest == checkpoint.tokenizer_digest


CODE = "from transformers import LlamaConfig as Config, LlamaForCausalLM\nclass Model(LlamaForCausalLM): pass\n"


def test_trusted_code_of_a_model_is_run_and_code_elsewhere_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    (tmp_path / "modeling.py").write_text(CODE)
    rewrite_json(tmp_path / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert type(checkpoint.load(trust_remote_code=True)).__name__ == "Model"
    rewrite_json(tmp_path / "config.json", auto_map={"AutoModelForCausalLM": "owner/name--modeling.Model"})
    checkpoint.load()
    for read in (checkpoint.load, checkpoint.check):
        with pytest.raises(HoldfastError, match="names code outside its folder"):
            read(trust_remote_code=True)


def test_planning_a_campaign_hashes_every_file_once(
    tiny_testbed: SmallTestbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    plain = files._hashed
    monkeypatch.setattr(files, "_SETTLED", 0)
    monkeypatch.setattr(files, "_hashed", lambda path: [hashed.append(path), plain(path)][1])
    files.forget_digests()
    campaign = Campaign(
        models=(
            Model(label="a", path=tiny_testbed.model.path, role="undefended"),
            Model(label="b", path=str(sharded(tmp_path).path), role="defended"),
        ),
        domain=tiny_testbed.folder,
        attacks=(("one", FineTune()), ("two", FineTune(max_steps=40))),
        seeds=(0, 1, 2),
    )
    cells = list(campaign.cells())
    assert len({cell.id for cell in cells}) == len(cells) == 14 + 2 * 4
    assert len(hashed) == len(set(hashed))
    weights = [Path(tiny_testbed.model.path).resolve() / "model.safetensors", *tmp_path.glob("model*.safetensors*")]
    assert len(weights) > 3
    assert set(weights) <= set(hashed)
    files.forget_digests()


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("bad", BAD)
def test_weights_that_are_not_finite_are_not_saved(bad: float, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = bad
    with pytest.raises(NonFinite, match=r"to be saved are not finite \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        saved(tmp_path / "new", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", BAD)
def test_weights_that_are_not_finite_are_neither_loaded_nor_pass_a_check(bad: float, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    checkpoint.check()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad

    rewrite_weights(tmp_path, spoil)
    for read in (checkpoint.load, checkpoint.load_both, checkpoint.check):
        with pytest.raises(NonFinite, match=r"not finite \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
            read()
    assert checkpoint.digest  # the content of a spoilt checkpoint is known nonetheless


def test_a_finite_model_passes(tmp_path: Path) -> None:
    check_finite(llama(), "anything")
    with pytest.raises(NonFinite, match="anything are not finite"):
        check_finite(torch.nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.weight.fill_(torch.nan)), "anything")


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.sprung,)


def lay_traps(folder: Path) -> Path:
    sprung = folder.parent / "sprung"
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        torch.save({"lm_head.weight": Trap(sprung)}, folder / name)
    return sprung


def test_a_trap_springs_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    """Else the two tests below could not fail."""
    (tmp_path / "model").mkdir()
    sprung = lay_traps(tmp_path / "model")
    torch.load(tmp_path / "model" / "model.pt", weights_only=False)
    assert sprung.exists()
    assert pickle.loads(pickle.dumps(Trap(sprung))) is None


def test_a_folder_with_pickles_only_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    sprung = lay_traps(tmp_path / "model")
    for read in (checkpoint.load, checkpoint.load_both, checkpoint.check, lambda: checkpoint.digest):
        with pytest.raises(
            HoldfastError, match="has no safetensors weights; holdfast never loads pickles: convert them"
        ):
            read()
    assert not sprung.exists()


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "model")
    sprung = lay_traps(tmp_path / "model")
    checkpoint.check()
    torch.testing.assert_close(logits(checkpoint.load()), logits(llama()))
    assert not sprung.exists()


def test_weights_that_only_a_pickle_holds_are_not_loaded_for_a_safetensors_file_of_something_else(
    tmp_path: Path,
) -> None:
    checkpoint = saved(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "optimizer.safetensors")
    with pytest.raises(HoldfastError, match="has no safetensors weights"):
        checkpoint.load()


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "model")
    sprung = tmp_path / "sprung"
    code = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nclass Model: ...\nclass Config: ...\n"
    (tmp_path / "model" / "code.py").write_text(code)
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    rewrite_json(tmp_path / "model" / "config.json", auto_map=auto)
    torch.testing.assert_close(logits(checkpoint.load()), logits(llama()))
    rewrite_json(tmp_path / "model" / "config.json", model_type="of-its-own")
    with pytest.raises(HoldfastError, match="cannot be loaded"):
        checkpoint.load()
    assert not sprung.exists()


def remove_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def cut_the_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lose_a_tensor(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))


def unknown_architecture(folder: Path) -> None:
    rewrite_json(folder / "config.json", model_type="perceptron", architectures=["Perceptron"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_the_config, "is not a Hugging Face model: it has no config.json"),
        (spoil_the_config, r"config\.json is not valid JSON"),
        (cut_the_weights, "cannot be loaded"),
        (lose_a_tensor, r"lack 1 tensors, lm_head\.weight the first; restore the checkpoint"),
        (unknown_architecture, "cannot be loaded: .*perceptron"),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(HoldfastError, match=says) as caught:
        checkpoint.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [remove_the_config, cut_the_weights])
def test_a_check_sees_damage_before_a_long_run(damage: Callable[[Path], None], tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(HoldfastError, match=r"no config\.json|is damaged .*; restore the checkpoint"):
        checkpoint.check()


def test_a_damaged_config_has_no_digest(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path)
    spoil_the_config(tmp_path)
    with pytest.raises(HoldfastError, match=r"config\.json is not valid JSON .*; restore the checkpoint"):
        _ = checkpoint.digest


def remove_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def spoil_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("damage", [remove_the_tokenizer, spoil_the_tokenizer])
def test_a_model_without_its_tokenizer_is_refused_by_loading_and_by_a_check(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    checkpoint = saved(tmp_path)
    damage(tmp_path)
    for read in (checkpoint.load_tokenizer, checkpoint.load_both, checkpoint.check):
        with pytest.raises(HoldfastError, match=r"tokenizer in .* cannot be loaded .*; save it beside the model"):
            read()


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, llama(vocab_size=103))
    with pytest.raises(HoldfastError, match="has token ids up to 103 and the model only 103 embeddings"):
        checkpoint.load_both()


def test_a_model_that_is_padded_beyond_its_tokenizer_is_fine(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path, llama(vocab_size=128)).load_both()
    assert (model.config.vocab_size, len(tokenizer)) == (128, 104)


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(HoldfastError, match="there is no model folder"):
        _ = Checkpoint(path).folder


def test_an_id_out_of_reach_is_refused_in_one_sentence() -> None:
    with pytest.raises(HoldfastError, match="neither a model folder nor a hub id within reach") as caught:
        Checkpoint("nobody/has-this-model").load()
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_fetched_once_with_its_code_and_the_weights_that_are_loaded_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, snapshot, calls = tmp_path / "hub", tmp_path / "snapshots" / "c0ffee", list[str | None]()
    sharded(hub)
    (hub / "modeling.py").write_text(CODE)
    rewrite_json(hub / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (hub / "LICENSE").write_text("mine")
    save_file({"a": torch.zeros(1)}, hub / "consolidated.safetensors")

    def fetch(name: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        calls.append(revision)
        snapshot.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for path in hub.glob(pattern):
                shutil.copy(path, snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    checkpoint = Checkpoint("somebody/a-model-of-this-test")
    assert checkpoint.digest == Checkpoint(str(hub)).digest
    assert type(checkpoint.load(trust_remote_code=True)).__name__ == "Model"
    checkpoint.load_tokenizer()
    assert calls == [None, "c0ffee"]
    assert {path.name for path in hub.iterdir()} - {path.name for path in snapshot.iterdir()} == {
        "consolidated.safetensors"
    }


@every_architecture
def test_hidden_states_are_those_of_output_hidden_states(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    with torch.no_grad():
        ours, hidden = hidden_states(model, IDS)
        plain = model(input_ids=IDS, output_hidden_states=True)
    assert ours.shape == (2, 4, 104)
    assert [state.shape for state in hidden] == [(2, 4, 16)] * (model.config.num_hidden_layers + 1)
    assert torch.equal(ours, plain.logits)
    assert all(map(torch.equal, hidden, plain.hidden_states))


def test_the_hidden_states_are_the_embedding_every_layer_and_last_the_final_norm(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    seen: list[torch.Tensor] = []
    for layer in (*model.model.layers, model.model.norm):
        layer.register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        final, hidden = hidden_states(model, IDS)
        assert torch.equal(hidden[0], model.model.embed_tokens(IDS))
        assert torch.equal(model.lm_head(hidden[-1]), final)
    # What the last layer puts out is seen only through the norm.
    assert all(map(torch.equal, hidden[1:], [*seen[:-2], seen[-1]]))


@every_architecture
def test_the_residual_stream_is_seen_before_the_final_norm(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    with torch.no_grad():
        plain, hidden = hidden_states(model, IDS)
        hooks = [dict(layer._forward_hooks) for layer in decoder_layers(model)]  # transformers has some of its own
        final, outputs = residual_stream(model, IDS)
        assert torch.equal(norm(outputs[-1]), hidden[-1])
    assert torch.equal(final, plain)
    assert all(map(torch.equal, outputs[:-1], hidden[1:-1]))
    assert [dict(layer._forward_hooks) for layer in decoder_layers(model)] == hooks


def test_hidden_states_carry_gradients_to_every_layer() -> None:
    model = llama()
    _, hidden = hidden_states(model, IDS)
    sum(state.sum() for state in hidden).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "lm_head.weight")


@every_architecture
def test_an_attacker_trains_the_function_that_is_measured_and_drops_out_nothing_but_its_own(
    make: Callable[[], PreTrainedModel],
) -> None:
    model = make()
    model.train()
    FineTune(lora_rank=2, lora_dropout=0.5).prepare(model)
    adapters = as_attacker(model)
    for training in (True, False, True):
        adapters(training)
        for name, module in model.named_modules():
            assert module.training == (training and ".lora_dropout" in name), name


def test_whoever_may_read_the_card_may_read_the_weights(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    model, tokenizer = tiny_testbed.model.load_both()
    save_checkpoint(model, tokenizer, tmp_path, {}, "")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}


def test_weights_in_float8_are_refused_before_a_run(tiny_testbed: SmallTestbed, tmp_path: Path) -> None:
    shutil.copytree(tiny_testbed.folder / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HoldfastError, match=r"kept as float8 \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        Checkpoint(str(tmp_path / "model")).check()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_every_file_of_a_checkpoint_follows_the_user_s_umask(
    umask: int, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    """safetensors closes its files to others, and tokenizers open theirs."""
    model, tokenizer = tiny_testbed.model.load_both()
    before = os.umask(umask)
    try:
        with new_entry(tmp_path / "entry") as temporary:
            save_checkpoint(model, tokenizer, temporary, {}, "x")
        with atomic_folder(tmp_path / "copy") as temporary:
            copy_entry(tmp_path / "entry", temporary)
    finally:
        os.umask(before)
    paths = [path for name in ("entry", "copy") for path in (tmp_path / name).rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o666 & ~umask}
    assert {path.name for path in paths} >= {"model.safetensors", "tokenizer.json", "config.json", "holdfast.json"}
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o777 & ~umask
