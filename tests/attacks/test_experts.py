"""Mixtures of experts, and other models whose weights are no plain linear layers: every plug-in takes all of them or refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedModel

from holdfast.attacks.abliterate import Abliterate, _Choice, _Contrast
from holdfast.attacks.compress import LowRank, Prune, PruneUnits, Quantise
from holdfast.attacks.edit import Edit
from holdfast.attacks.finetune import FineTune
from holdfast.attacks.latent import LatentPGD
from holdfast.attacks.merge import DefenceDirections, Interpolate
from holdfast.campaign.kept import check_keepable, keep, kept_folder
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.checkpoint import Checkpoint
from holdfast.engine.costs import update_size
from holdfast.engine.low_rank import adapter_changes, insert_adapters, merge_adapters, own_weights
from holdfast.engine.run import Run
from holdfast.engine.stream import residual_stream
from holdfast.safeguards.rmu import RMU
from tests.conftest import SmallTestbed
from tests.engine.test_anatomy import dbrx
from tests.engine.test_costs import IDS, built

NO_DATA: Any = None
"""These edits read none."""

FAMILIES = ["mixtral", "qwen2-moe", "deepseek-v3", "gpt-oss", "llama4", "phimoe", "gpt2", "phi3"]
every_family = pytest.mark.parametrize("family", FAMILIES)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def matrices(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every linear map, outputs x inputs, each expert for itself."""
    return {
        f"{linear.name}[{number}]": matrix.clone()
        for linear in linear_maps(model)
        for number, matrix in enumerate(linear.each(linear.weight.detach()))
    }


def others(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    maps = {linear.name for linear in linear_maps(model)}
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if name not in maps}


@every_family
def test_compression_takes_every_map_and_each_expert_for_itself(family: str) -> None:
    checks: dict[Edit, Callable[[torch.Tensor, torch.Tensor], bool]] = {
        Quantise(bits=3): lambda old, new: all(len(row.unique()) <= 7 for row in new),
        Prune(share=0.5): lambda old, new: int((new == 0).sum()) == round(0.5 * new.numel()),
        LowRank(kept_share=0.25): lambda old, new: (
            int(torch.linalg.matrix_rank(new, rtol=1e-4)) == max(round(0.25 * min(new.shape)), 1)
        ),
    }
    fresh = built(family)
    for attack, holds in checks.items():
        model = copy.deepcopy(fresh)
        attack.edit(model, NO_DATA, Run(0), 1)
        after = matrices(model)
        assert all(holds(old, after[name]) for name, old in matrices(fresh).items())
        assert all(torch.equal(old, others(model)[name]) for name, old in others(fresh).items())


@every_family
def test_every_expert_loses_a_share_of_its_hidden_units(family: str) -> None:
    model = built(family)
    PruneUnits(share=0.25).edit(model, NO_DATA, Run(0), 1)
    downs = {name: matrix for name, matrix in matrices(model).items() if "down_proj" in name or "mlp.c_proj" in name}
    assert downs
    for matrix in downs.values():
        assert int((matrix == 0).all(0).sum()) == round(0.25 * matrix.shape[1])


@every_family
def test_a_defence_of_one_direction_in_every_map_is_taken_back_whole(family: str) -> None:
    base = built(family)
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(0)
    for linear in linear_maps(model):
        linear.rewrite(
            lambda matrix: matrix + torch.outer(*(torch.randn(size, generator=generator) for size in matrix.shape))
        )
    before, origin = matrices(model), matrices(base)
    DefenceDirections(directions=1).edit(model, NO_DATA, Run(0, lambda: base), 1)
    for name, left in matrices(model).items():
        assert (left - origin[name]).abs().max() < 1e-4 * (before[name] - origin[name]).abs().max()


def test_merging_works_beside_fresh_low_rank_layers() -> None:
    base, model = built("mixtral"), built("mixtral")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    tune = FineTune(lora_rank=2)
    for attack in (Interpolate(t=1.0, max_steps=2, tune=tune), DefenceDirections(max_steps=2, tune=tune)):
        attacked = copy.deepcopy(model)
        attack.prepare(attacked)
        attack.edit(attacked, NO_DATA, Run(0, lambda: base), 1)
        for linear in linear_maps(attacked):
            assert (linear.weight - base.get_parameter(linear.name)).abs().max() < 1e-4


@every_family
def test_an_ablated_direction_is_in_nothing_that_is_written(family: str) -> None:
    model, generator = built(family).train(False), torch.Generator().manual_seed(0)
    apart, benign = (torch.randn(2, 2, 32, generator=generator) for _ in range(2))
    along = nn.functional.normalize(apart[:, 1].mean(0), dim=0)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight, generator=generator)

    def components() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack(residual_stream(model, IDS)[1]) @ along

    assert components().abs().max() > 1e-2
    Abliterate()._ablate(model, _Choice(_Contrast(apart, benign[0]), 1, 1.0))
    assert components().abs().max() < 1e-5


@every_family
def test_low_rank_layers_reach_every_map_and_are_merged_as_they_act(family: str) -> None:
    model = built(family).train(False)
    names, maps, before = list(own_weights(model)), {linear.name for linear in linear_maps(model)}, logits(model)
    insert_adapters(model, 2, 4.0, 0.25)
    model.train(False)
    assert set(adapter_changes(model)) == maps
    assert list(own_weights(model)) == names
    assert torch.allclose(logits(model), before, atol=1e-6)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == sum(
        2 * sum(matrix.shape) for matrix in matrices(model).values()
    )
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(weight.grad is not None for weight in trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    adapted = logits(model)
    assert list(own_weights(model)) == names
    merge_adapters(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.allclose(logits(model), adapted, atol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-3)


@pytest.mark.parametrize("family", ["deepseek-v3", "gpt2"])
def test_a_model_with_low_rank_layers_is_kept_as_it_acts(
    family: str, tiny_testbed: SmallTestbed, tmp_path: Path
) -> None:
    model = built(family).train(False)
    model.save_pretrained(tmp_path / "model")
    options = SimpleNamespace(precision="float32", trust_remote_code=False)
    attacked = SimpleNamespace(label="any", path=str(tmp_path / "model"))
    cell = SimpleNamespace(model=attacked, attack_name="any", seed=0, options=options)
    insert_adapters(model, 2, 4.0, 0.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    adapted = logits(model)
    check_keepable(model, "any")
    keep(model, tiny_testbed.model.load_tokenizer(), cast(Any, cell), "key", tmp_path)
    kept = Checkpoint(str(kept_folder(tmp_path, "key"))).load()
    assert torch.allclose(logits(kept), adapted, atol=1e-4)


def test_dropout_stands_before_the_factors_of_linear_layers() -> None:
    model = built("mixtral")
    insert_adapters(model, 2, 4.0, 0.25)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss", "gpt2"])
def test_low_rank_over_plain_weights_walks_the_path_of_low_rank_layers(family: str) -> None:
    attack = FineTune(lora_rank=2, lora_alpha=4.0)
    plain = built(family).double().train(False)
    adapted = copy.deepcopy(plain)
    origin = matrices(plain)
    attack.prepare(adapted)
    torch.manual_seed(7)
    for linear in linear_maps(plain):
        owner = adapted.get_submodule(linear.name.rpartition(".")[0])
        while getattr(owner, "parameter_name", linear.parameter) != linear.parameter:
            owner = owner.base_layer
        nn.init.kaiming_uniform_(owner.lora_A["default"].weight, a=math.sqrt(5))
    torch.manual_seed(7)
    one, other = attack._optimizer(plain), attack._optimizer(adapted)
    for _ in range(2):
        for model, optimizer in ((plain, one), (adapted, other)):
            model.zero_grad()
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            if optimizer is one:
                one.carry_gradients()  # type: ignore[union-attr]
            optimizer.step()
    merge_adapters(adapted)
    walked, merged = matrices(plain), matrices(adapted)
    for name, was in origin.items():
        assert (walked[name] - was).abs().max() > 1e-5
        torch.testing.assert_close(walked[name], merged[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "trained"),
    [
        ("qwen2-moe", ["mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight"]),
        ("deepseek-v3", ["mlp.experts.down_proj", "mlp.shared_experts.down_proj.weight"]),
    ],
)
def test_misdirection_trains_what_the_experts_write_by_and_no_gate(family: str, trained: list[str]) -> None:
    model = built(family)
    weights = RMU(layer=1).trained(model)
    names = [name for name, weight in model.named_parameters() if any(weight is one for one in weights)]
    assert [name.partition("layers.1.")[2] for name in names if "layers.1." in name] == trained


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "deepseek-v3", "gpt-oss"])
def test_the_size_of_an_update_counts_experts_whatever_their_names_in_the_folder(family: str, tmp_path: Path) -> None:
    model = built(family)
    model.save_pretrained(tmp_path)
    assert update_size(model, tmp_path) == 0.0
    norm = sum(float(weight.detach().square().sum()) for weight in model.parameters()) ** 0.5
    experts = [linear.weight for linear in linear_maps(model) if linear.experts is not None]
    with torch.no_grad():
        for weight in experts:
            weight.add_(0.01)
    moved = 0.01 * sum(weight.numel() for weight in experts) ** 0.5
    assert update_size(model, tmp_path) == pytest.approx(moved / norm, rel=1e-4)
    insert_adapters(model, 2, 4.0, 0.0)
    assert update_size(model, tmp_path) == pytest.approx(moved / norm, rel=1e-4)


def test_a_perturbation_of_mixtures_is_refused() -> None:
    with pytest.raises(HoldfastError, match="the MLPs of a MixtralForCausalLM are mixtures of experts"):
        LatentPGD(depths=(0.0,)).prepare(built("mixtral"))


def test_a_perturbation_finds_its_place_in_layers_of_another_kind() -> None:
    model = built("gpt2")
    LatentPGD(depths=(0.5,)).prepare(model)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [
        "transformer.h.1.mlp.c_proj.bias"
    ]


def test_low_rank_layers_that_experts_would_share_are_refused() -> None:
    with pytest.raises(
        HoldfastError, match=r"LoRA cannot give each expert of .* of a DbrxForCausalLM factors of its own"
    ):
        FineTune(lora_rank=2).prepare(dbrx())


def test_low_rank_layers_that_a_kernel_would_pass_by_are_refused() -> None:
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    model = Mamba2ForCausalLM(Mamba2Config(**sizes, num_heads=4, head_dim=16, state_size=8, n_groups=2, chunk_size=8))
    with pytest.raises(
        HoldfastError, match=r"LoRA would not reach every use of backbone\.layers\.0\.mixer\.in_proj\.weight"
    ):
        FineTune(lora_rank=2).prepare(model)
