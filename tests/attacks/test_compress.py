"""Compression: what each kind leaves of a matrix, of a model, and over several updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from holdfast.attacks.compress import LowRank, Prune, PruneUnits, Quantise
from holdfast.attacks.edit import Edit
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.run import Run
from tests.attacks.walk import fresh, walk
from tests.conftest import SmallTestbed

NO_DATA: Any = None
"""These edits read none."""

ROWS, COLUMNS = 6, 10
seeds = st.integers(0, 10_000)


class OneLayer(nn.Module):
    """The least that has linear layers."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0])
        self.layer.weight = nn.Parameter(weight.clone())

    def get_output_embeddings(self) -> None:
        return None


def matrix(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def compressed(attack: Edit, weight: torch.Tensor) -> torch.Tensor:
    """What is left of a weight after every update."""
    model: Any = OneLayer(weight)
    for update in range(1, attack.edits + 1):
        attack.edit(model, NO_DATA, Run(0), update)
    left: torch.Tensor = model.layer.weight.detach()
    return left


@given(seeds, st.integers(2, 8), st.sampled_from([None, 1, 4, COLUMNS]))
def test_a_quantised_weight_is_the_nearest_point_of_a_symmetric_grid(
    seed: int, bits: int, group_size: int | None
) -> None:
    weight = matrix(seed)
    after = compressed(Quantise(bits=bits, group_size=group_size), weight)
    size = group_size or COLUMNS
    for row, left in zip(weight, after, strict=True):
        for start in range(0, COLUMNS, size):  # the last group is shorter where the size does not divide
            before, points = row[start : start + size], left[start : start + size]
            levels = 2 ** (bits - 1) - 1
            step = before.abs().max() / levels
            assert torch.allclose(points / step, (points / step).round(), atol=1e-3)
            assert (points - before).abs().max() <= step / 2 * 1.001
            assert points.abs().max() == pytest.approx(float(before.abs().max()), rel=1e-5)


def test_a_row_of_zeros_stays_one() -> None:
    assert not compressed(Quantise(), torch.zeros(2, 3)).any()


def test_over_several_updates_the_bits_fall_by_one_each() -> None:
    model: Any = OneLayer(torch.linspace(-1, 1, 4001)[None])
    attack = Quantise(bits=3, max_steps=3)
    points = []
    for update in (1, 2, 3):
        attack.edit(model, NO_DATA, Run(0), update)
        points.append(len(model.layer.weight.detach().unique()))
    assert points == [2**5 - 1, 2**4 - 1, 2**3 - 1]


@given(seeds, st.floats(0.05, 0.95))
def test_pruning_zeroes_the_smallest_share_and_touches_no_other(seed: int, share: float) -> None:
    weight = matrix(seed)
    after = compressed(Prune(share=share), weight)
    gone = after == 0
    assert int(gone.sum()) == round(share * weight.numel())
    assert torch.equal(after[~gone], weight[~gone])
    if gone.any():
        assert weight[gone].abs().max() <= weight[~gone].abs().min()


@given(seeds, st.floats(0.1, 0.9))
def test_a_truncated_weight_is_the_nearest_of_its_rank(seed: int, share: float) -> None:
    weight = matrix(seed)
    after = compressed(LowRank(kept_share=share), weight)
    rank = max(round(share * ROWS), 1)
    values = torch.linalg.svdvals(weight)
    assert torch.linalg.matrix_rank(after, rtol=1e-4) == rank
    # Eckart and Young: no matrix of that rank is nearer than the singular values that are cut off.
    assert float((weight - after).norm()) == pytest.approx(float(values[rank:].norm()), abs=1e-4)


@given(seeds)
def test_in_several_updates_it_comes_to_the_same_as_in_one(seed: int) -> None:
    weight = matrix(seed)
    assert torch.equal(compressed(Prune(share=0.6, max_steps=4), weight), compressed(Prune(share=0.6), weight))
    stepwise = compressed(LowRank(kept_share=0.5, max_steps=3), weight)
    assert torch.allclose(stepwise, compressed(LowRank(kept_share=0.5), weight), atol=1e-4)


def test_pruned_units_could_as_well_be_cut_out(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    held: Any = model
    kept = []
    for layer in held.model.layers:
        parts = [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight.T]
        norms = torch.cat([part.detach() for part in parts], dim=1).norm(dim=1)
        kept.append(norms.argsort()[round(0.25 * len(norms)) :].sort().values)
    PruneUnits(share=0.25).edit(model, NO_DATA, Run(0), 1)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        pruned = model(input_ids=ids).logits
        for layer, units in zip(held.model.layers, kept, strict=True):
            assert layer.mlp.down_proj.weight.any(0).sum() == len(units)
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight = nn.Parameter(part.weight[units])
            layer.mlp.down_proj.weight = nn.Parameter(layer.mlp.down_proj.weight[:, units])
        cut = model(input_ids=ids).logits
    assert torch.allclose(pruned, cut, atol=1e-5)


def test_units_go_one_share_after_the_other(tiny_testbed: SmallTestbed) -> None:
    assert torch.equal(walk(PruneUnits(max_steps=3), tiny_testbed)[-1], walk(PruneUnits(), tiny_testbed)[-1])


@pytest.mark.parametrize("attack", [Quantise(), Prune(), LowRank(), PruneUnits()])
def test_only_linear_layers_change(attack: Edit, tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in attack.steps(model, data, Run(0)):
        pass
    linear = {found.name for found in linear_maps(model)}
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == ({name for name in linear if "mlp" in name} if isinstance(attack, PruneUnits) else linear)


def test_a_model_without_linear_maps_is_refused() -> None:
    model: Any = OneLayer(matrix(0))
    model.layer = nn.Embedding(3, 2)
    with pytest.raises(HoldfastError, match="has no linear maps, which this compresses"):
        Prune().edit(model, NO_DATA, Run(0), 1)


def test_an_mlp_of_other_parts_is_refused(tiny_testbed: SmallTestbed) -> None:
    model: Any = fresh(tiny_testbed)[0]
    model.model.layers[1].mlp.between = nn.Linear(5, 7)
    with pytest.raises(HoldfastError, match="is not made of projections up and one down"):
        PruneUnits().edit(model, NO_DATA, Run(0), 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Quantise(bits=1), "bits must be at least 2"),
        (lambda: Quantise(bits=8, max_steps=10), "bits must be at least 2 and, .* at most 16"),
        (lambda: Quantise(group_size=0), "group_size must be at least 1"),
        (lambda: Prune(share=1.0), "share must lie above 0 and below 1"),
        (lambda: PruneUnits(share=0.0), "share must lie above 0 and below 1"),
        (lambda: LowRank(kept_share=float("nan")), "kept_share must lie above 0 and below 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Edit], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        make()
