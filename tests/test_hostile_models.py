"""Model folders whose config or tokenizer no one could mean: they load, or are refused at once in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.sizes import check_sizes
from holdfast.core.types import HoldfastError
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.tokens import plain
from tests.conftest import SmallTestbed


@pytest.fixture(scope="module")
def copied(tiny_testbed: SmallTestbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    shutil.copytree(tiny_testbed.folder / "model", folder)
    return folder


@pytest.fixture
def model(copied: Path, tiny_testbed: SmallTestbed) -> Path:
    """A model's folder whose texts a test may change; the weights stay."""
    for path in (tiny_testbed.folder / "model").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, copied)
    return copied


def outcome(model: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Check, load and encode; "loads", or the sentence of the refusal."""
    capfd.readouterr()
    checkpoint = Checkpoint(str(model))
    try:
        checkpoint.check(max_length=16)
        _, tokenizer = checkpoint.load_both()
        plain(tokenizer, ["a compound that nobody knows"])
    except HoldfastError as error:
        said = str(error)
        assert len(said.splitlines()) == 1
        assert len(said) < 700
    else:
        said = "loads"
    assert capfd.readouterr().err == ""
    return said


CONFIGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"num_hidden_layers": -1}, "num_hidden_layers = -1, where a model has 1 or more"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but its weights are only"),
    ({"num_hidden_layers": 10**5}, "num_hidden_layers = 100000, but its weights are only"),
    ({"num_hidden_layers": 3.5}, "cannot be loaded"),
    ({"hidden_size": 0}, "hidden_size = 0"),
    ({"hidden_size": 10**12}, "hidden_size = 1000000000000, but its weights are only"),
    ({"intermediate_size": 10**9}, "intermediate_size = 1000000000"),
    ({"vocab_size": 10**9}, "vocab_size = 1000000000, but its weights are only"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"num_key_value_heads": 10**9}, "num_key_value_heads = 1000000000"),
    ({"rms_norm_eps": "x"}, "cannot be loaded"),
    ({"hidden_act": "os.system"}, "cannot be loaded"),
    ({"max_position_embeddings": "16"}, "cannot be loaded"),
    ({"tie_word_embeddings": "yes"}, "cannot be loaded"),
    ({"rope_parameters": {"rope_type": "evil"}}, "cannot be loaded"),
    ({"dtype": "evil"}, "cannot be loaded"),
    ({"model_type": None}, "cannot be loaded"),
    ({"vocab_size": int("9" * 4000)}, "vocab_size = 9999"),
    ({"dtype": "float16"}, "loads"),
    ({"architectures": ["Evil"]}, "loads"),
    ({"max_position_embeddings": 10**7}, "loads"),
    ({"_attn_implementation": "evil/kernel"}, ""),
    ({"attn_implementation": "kernels-community/x"}, ""),
    ({"eos_token_id": 10**9}, ""),
    ({"attention_dropout": 2.0}, ""),
    ({"initializer_range": -1}, ""),
)  # fmt: skip


@pytest.mark.situation("hostile input", "a model's config")
@pytest.mark.parametrize(("changes", "said"), CONFIGS, ids=[str(changes)[:40] for changes, _ in CONFIGS])
def test_a_config_that_no_one_could_mean(
    changes: dict[str, Any], said: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    assert said in outcome(model, capfd)


def test_sizes_that_real_models_have_pass() -> None:
    """Long contexts, windows and nested parts are named by configs whose weights do not hold them."""
    config = {
        "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "max_position_embeddings": 10**7,
        "rope_theta": 5000000, "text_config": {"num_experts": 128, "sliding_window": 2**17},
    }  # fmt: skip
    check_sizes(config, tensors=291, size=16 * 10**9, folder=Path("model"))
    check_sizes({"num_hidden_layers": 54}, tensors=9, size=10**6, folder=Path("shared layers"))


Change = Callable[[dict[str, Any]], object]


def in_file(name: str, change: Change) -> Callable[[Path], None]:
    def changed(model: Path) -> None:
        table = json.loads((model / name).read_text(encoding="utf-8"))
        change(table)
        (model / name).write_text(json.dumps(table), encoding="utf-8")

    return changed


TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "vocab negative": in_file("tokenizer.json", lambda t: t["model"]["vocab"].update(x=-1)),
    "vocab huge": in_file("tokenizer.json", lambda t: t["model"]["vocab"].update(x=2**31)),
    "vocab empty": in_file("tokenizer.json", lambda t: t["model"].update(vocab={})),
    "no unknown": in_file("tokenizer.json", lambda t: t["model"].update(unk_token="nowhere")),
    "length 0": in_file("tokenizer_config.json", lambda t: t.update(model_max_length=0)),
    "length -1": in_file("tokenizer_config.json", lambda t: t.update(model_max_length=-1)),
    "class": in_file("tokenizer_config.json", lambda t: t.update(tokenizer_class="os")),
    "end": in_file("tokenizer_config.json", lambda t: t.update(eos_token="brand new token")),
    "pad": in_file("tokenizer_config.json", lambda t: t.update(pad_token="brand new token")),
    "special": in_file("tokenizer_config.json", lambda t: t.update(extra_special_tokens={"a": 1})),
    "list": lambda model: (model / "tokenizer_config.json").write_text("[]"),
    "zeros": lambda model: (model / "tokenizer.json").write_bytes(b"\0" * 100),
}


@pytest.mark.situation("hostile input", "a model's tokenizer")
@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_that_no_one_could_mean(what: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TOKENIZERS[what](model)
    said = outcome(model, capfd)
    assert said == "loads" or "tokenizer" in said
    assert what not in ("vocab empty", "no unknown", "zeros", "vocab huge") or said != "loads"
