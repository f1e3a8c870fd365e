"""A model's class is read from the headers of its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from holdfast.attacks.space import collect_families
from holdfast.core.model_size import count_weights, size_of
from holdfast.core.presets import collect
from holdfast.core.types import HoldfastError
from holdfast.runs.suites import SUITES


@pytest.mark.parametrize(
    ("weights", "size"),
    [(380_000, "tiny"), (135_000_000, "small"), (1_200_000_000, "small"), (8_000_000_000, "large")],
)
def test_a_class_has_models_of_its_order(weights: int, size: str) -> None:
    assert size_of(weights) == size


def test_every_tensor_of_the_files_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert count_weights(tmp_path) == 17


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(HoldfastError, match=r"are damaged .*; restore the checkpoint"):
        count_weights(tmp_path)


def test_suites_and_families_for_small_models_have_presets_for_small_models_alone() -> None:
    attacks = collect("holdfast.attacks")
    for_all = {"abliterate", "defence-directions-4", "latent-pgd-three-layers"}
    for_all |= {"strip-difference", "strip-difference-then-abliterate"}
    small = [name for suite in SUITES.values() if suite.size == "small" for name in suite.attacks]
    assert all(name.endswith("-small") or name in for_all for name in small)
    assert all(name in attacks for name in small)
    families = {name for name, family in collect_families().items() if family.size == "small"}
    assert families
    assert all(name.endswith("-small") for name in families)
