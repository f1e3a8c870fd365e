"""The strip: what counts as signal, and what is left of the difference."""

from __future__ import annotations

import pytest
import torch

from holdfast.attacks.difference import StripDifference, signal
from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError
from holdfast.engine.anatomy import linear_maps
from holdfast.engine.run import Run
from tests.attacks.walk import fresh
from tests.conftest import SmallTestbed


def noise(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) / columns**0.5


@pytest.mark.parametrize("shape", [(96, 96), (256, 96), (96, 256)])
def test_the_threshold_parts_a_planted_rank_from_noise_of_any_size(shape: tuple[int, int]) -> None:
    rows, columns = shape
    for scale in (1e-4, 1.0):
        assert torch.linalg.matrix_rank(signal(scale * noise(*shape))) == 1  # the largest goes in any case
        left, right = torch.linalg.qr(noise(rows, 3)).Q, torch.linalg.qr(noise(columns, 3)).Q
        planted = scale * (10 * left @ right.T + noise(*shape))
        assert torch.linalg.matrix_rank(signal(planted), rtol=1e-3) == 3
    # A known coefficient: for a square matrix the threshold is 2.86 times the median.
    values = torch.tensor([2.9, 2.8, 1.0, 1.0, 1.0])
    assert torch.linalg.svdvals(signal(values.diag())).gt(1e-6).sum() == 1
    assert torch.linalg.svdvals(signal(values.diag(), threshold=0.5)).gt(1e-6).sum() == 2
    assert torch.linalg.svdvals(signal(values.diag(), threshold=9.0)).gt(1e-6).sum() == 1


def test_every_map_loses_its_own_rank_and_keeps_the_rest(tiny_testbed: SmallTestbed) -> None:
    base = tiny_testbed.never_exposed.load()
    model, data = fresh(tiny_testbed)
    model.load_state_dict(base.state_dict())
    generator = torch.Generator().manual_seed(1)
    rests = {}
    with torch.no_grad():
        for place, found in enumerate(linear_maps(model)):
            rests[found.name] = 1e-4 * torch.randn(found.weight.shape, generator=generator)
            found.weight.add_(rests[found.name])
            for _ in range(place % 3):
                ends = [torch.randn(size, generator=generator) for size in found.weight.shape]
                found.weight.add_(0.1 * torch.outer(*ends) / ends[0].norm())
    list(StripDifference().steps(model, data, Run(3, tiny_testbed.never_exposed.load)))
    original = {found.name: found.weight for found in linear_maps(base)}
    for found in linear_maps(model):
        left = (found.weight - original[found.name]).detach()
        assert left.norm() <= rests[found.name].norm(), found.name
        assert (left - rests[found.name]).norm() < 0.3 * rests[found.name].norm(), found.name


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(HoldfastError, match="threshold must be above 0"):
        StripDifference(threshold=0.0)
    assert StripDifference(max_steps=2, tune=FineTune()).uses_base
