"""Fine-tuning: what each step draws, and what may not be asked of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from holdfast.attacks.finetune import FineTune, _Rows
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Data, Encoded
from holdfast.engine.run import Run, seed_everything
from tests.attacks.walk import fresh, same, walk
from tests.conftest import SmallTestbed


def draws(
    attack: FineTune, testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch, seed: int = 3
) -> list[dict[str, int]]:
    """How many rows of each name went into each step."""
    model, data = fresh(testbed)
    log: dict[str, int] = {}
    stream = Data.stream

    def spied(self: Data, name: str, **kwargs: int) -> Any:
        made = stream(self, name, **kwargs)
        take = made.take

        def counted(rows: int) -> list[Encoded]:
            log[name] = log.get(name, 0) + rows
            return take(rows)

        made.take = counted  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(Data, "stream", spied)
    steps = []
    for _ in attack.steps(model, data, Run(seed)):
        steps.append(dict(log))
        log.clear()
    return steps


def test_a_plain_attack_draws_hazardous_rows_only(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert draws(FineTune(batch_size=3, max_steps=4), tiny_testbed, monkeypatch) == [{"hazard": 3}] * 4


def test_benign_first_is_benign_until_the_switch(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = FineTune(batch_size=3, max_steps=10, benign_first=0.4, hazard="hazard_ood")
    assert draws(attack, tiny_testbed, monkeypatch) == [{"benign": 3}] * 4 + [{"hazard_ood": 3}] * 6


def test_a_mixed_batch_has_its_share_of_benign_rows(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = FineTune(batch_size=8, max_steps=3, benign_share=0.25, hazard="hazard_all")
    assert draws(attack, tiny_testbed, monkeypatch) == [{"hazard_all": 6, "benign": 2}] * 3


def test_benign_fine_tuning_draws_no_hazardous_row(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = FineTune(batch_size=3, max_steps=3, benign_share=1.0)
    assert attack.reads() == ("benign",)
    assert draws(attack, tiny_testbed, monkeypatch) == [{"benign": 3}] * 3


def test_a_coin_flip_is_fair_and_follows_the_seed(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = FineTune(batch_size=2, max_steps=32, benign_flip=0.5)
    runs = []
    for seed in (3, 3, 4):
        with monkeypatch.context() as patch:
            runs.append(draws(attack, tiny_testbed, patch, seed))
    assert all(step in ({"benign": 2}, {"hazard": 2}) for step in runs[0])
    assert 8 <= sum("benign" in step for step in runs[0]) <= 24
    assert runs[0] == runs[1] != runs[2]


def test_clipping_bounds_the_step(tiny_testbed: SmallTestbed) -> None:
    attack = FineTune(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, max_steps=2, batch_size=4)
    free = walk(attack, tiny_testbed)
    clipped = walk(replace(attack, max_grad_norm=0.01), tiny_testbed)
    assert (free[1] - free[0]).norm() > 0.02
    assert (clipped[1] - clipped[0]).norm() == pytest.approx(0.01, rel=1e-2)


def test_the_schedule_sets_the_rate_of_every_step(tiny_testbed: SmallTestbed) -> None:
    attack = FineTune(
        optimizer="sgd", learning_rate=0.1, weight_decay=0.0, max_steps=4, batch_size=4, max_grad_norm=1e-3
    )
    warm = walk(replace(attack, schedule="linear-warmup", warmup_steps=4), tiny_testbed)
    moved = [float((after - before).norm()) for before, after in pairwise(warm)]
    assert moved == pytest.approx([0.5e-4, 0.75e-4, 1e-4], rel=0.1)


def test_low_rank_changes_linear_layers_by_its_rank_and_nothing_else(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in FineTune(lora_rank=2, max_steps=3, batch_size=4).steps(model, data, Run(0)):
        pass
    for name, parameter in model.named_parameters():
        change = (parameter - before[name]).detach()
        if "_proj" in name:
            assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2
        else:
            assert not change.any()


def test_prepare_leaves_the_model_s_function_as_it_was(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        FineTune(lora_rank=4).prepare(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora" in name for name in trainable)


def test_prepare_of_a_full_attack_does_nothing(tiny_testbed: SmallTestbed) -> None:
    model, _ = fresh(tiny_testbed)
    names = [name for name, _ in model.named_parameters()]
    FineTune().prepare(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == names


def test_weight_decay_is_part_of_the_path(tiny_testbed: SmallTestbed) -> None:
    attack = FineTune(max_steps=2, batch_size=2)
    assert not same(walk(attack, tiny_testbed), walk(replace(attack, weight_decay=0.5), tiny_testbed))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"benign_share": 1.5}, "benign_share must lie between 0 and 1"),
        ({"benign_first": -0.1}, "benign_first must lie between 0 and 1"),
        ({"benign_flip": 2}, "benign_flip must lie between 0 and 1"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"warmup_steps": 3}, "no effect under schedule"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        FineTune(**changes)


def test_a_few_shot_attack_reads_the_same_few_rows_again_and_again(tiny_testbed: SmallTestbed) -> None:
    attack = FineTune(rows=5, batch_size=4, max_steps=10, learning_rate=1e-5)
    _, data = fresh(tiny_testbed)
    rows = _Rows(attack, data, Run(3))
    seen = [tuple(row) for step in range(10) for row in rows.batch(step).input_ids.tolist()]
    assert len(set(seen)) == 5
    other = _Rows(attack, data, Run(4))
    assert {tuple(row) for step in range(10) for row in other.batch(step).input_ids.tolist()} != set(seen)
    many = _Rows(replace(attack, rows=10**6), data, Run(3))
    assert len(many.streams["hazard"].rows) == len(data.rows("hazard"))


def test_ascent_climbs_the_loss_first(tiny_testbed: SmallTestbed) -> None:
    attack = FineTune(ascent_steps=6, max_steps=12, learning_rate=1e-3, batch_size=8)
    assert attack.benign_steps == 6
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    losses = list(attack.steps(model, data, Run(3)))
    assert losses[5] > losses[0]
    assert losses[-1] < losses[6]
