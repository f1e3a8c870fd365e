"""Weight noise: of the size that is asked for, at the places that are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from holdfast.attacks.finetune import FineTune
from holdfast.attacks.noise import NoiseRestart
from holdfast.core.types import HoldfastError
from holdfast.engine.run import Run, seed_everything
from tests.attacks.walk import fresh, walk
from tests.conftest import SmallTestbed

_STILL = FineTune(learning_rate=1e-12, batch_size=4, weight_decay=0.0)


def test_the_noise_is_so_many_standard_deviations_of_each_weight(tiny_testbed: SmallTestbed) -> None:
    seed_everything(0)
    model, data = fresh(tiny_testbed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    next(NoiseRestart(scale=0.3, max_steps=1, tune=_STILL).steps(model, data, Run(0)))
    for name, weight in model.named_parameters():
        was, now = before[name], weight.detach()
        if was.std() == 0:
            torch.testing.assert_close(now, was)
        elif was.numel() > 1000:
            assert float((now - was).std() / was.std()) == pytest.approx(0.3, rel=0.1)


def test_restarts_are_even_over_the_run_and_differ(tiny_testbed: SmallTestbed) -> None:
    path = walk(NoiseRestart(scale=0.3, restarts=2, max_steps=6, tune=_STILL), tiny_testbed)
    start = torch.cat([p.detach().flatten() for p in fresh(tiny_testbed)[0].parameters()])
    moved = [float((after - before).norm()) for before, after in zip([start, *path], path, strict=False)]
    large = [step for step, size in enumerate(moved) if size > 1]
    assert large == [0, 2, 4]
    assert len({round(size, 4) for size in (moved[0], moved[2], moved[4])}) == 3


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"restarts": -1}, {"max_steps": 0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(HoldfastError):
        replace(NoiseRestart(), **wrong)  # type: ignore[arg-type]
