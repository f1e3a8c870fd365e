"""Break-then-repair: two phases of one path, and a teacher that is read without a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from holdfast.attacks.break_then_repair import BreakThenRepair
from holdfast.attacks.finetune import FineTune
from holdfast.core.types import HoldfastError
from holdfast.engine.data import Batch, Data, Encoded
from holdfast.engine.losses import distillation_loss
from holdfast.engine.run import Run, seed_everything
from holdfast.engine.walk import drive
from tests.attacks.walk import fresh, same, walk, weights
from tests.conftest import SmallTestbed

SHORT = BreakThenRepair(kick_steps=2, max_steps=5, batch_size=8, learning_rate=3e-4, weight_decay=0.0)


def test_the_kick_is_plain_fine_tuning_at_its_rate(tiny_testbed: SmallTestbed) -> None:
    plain = FineTune(
        hazard=SHORT.hazard, batch_size=8, learning_rate=SHORT.kick_learning_rate, weight_decay=0.0, max_steps=2
    )
    assert same(walk(SHORT, tiny_testbed)[:2], walk(plain, tiny_testbed))


def test_the_settling_starts_at_its_own_rate_without_the_kick_s_moments(tiny_testbed: SmallTestbed) -> None:
    path = walk(SHORT, tiny_testbed)
    # Adam's first step moves every weight that has a gradient by the rate itself; a later one would not.
    assert (path[2] - path[1]).abs().max() == pytest.approx(SHORT.learning_rate, rel=1e-2)
    moved = (path[2] - path[1]).abs()
    assert moved[moved > 0].median() == pytest.approx(SHORT.learning_rate, rel=1e-2)


def test_benign_rows_come_with_the_settling(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int]] = []
    stream = Data.stream

    def spied(self: Data, name: str, **kwargs: int) -> Any:
        made = stream(self, name, **kwargs)
        take = made.take

        def counted(rows: int) -> list[Encoded]:
            log.append((name, rows))
            return take(rows)

        made.take = counted  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(Data, "stream", spied)
    walk(replace(SHORT, kick_steps=1, max_steps=2, benign_share=0.25, hazard="hazard_ood"), tiny_testbed)
    assert [(name, rows) for name, rows in log if rows] == [("hazard_ood", 8), ("benign", 2), ("hazard_ood", 6)]


def test_reading_the_teacher_leaves_the_weights_as_they_were(tiny_testbed: SmallTestbed) -> None:
    # A divergence of no weight takes the teacher's way there and back, and must end where the path without it does.
    path = walk(replace(SHORT, kl_weight=1e-30), tiny_testbed)
    assert same(path, walk(SHORT, tiny_testbed))


def benign_rows(data: Data) -> Batch:
    stream = data.stream("benign", batch_size=64, seed=0)
    return stream.batch(stream.rows[:64])


def divergence(model: PreTrainedModel, found: PreTrainedModel, batch: Batch) -> float:
    with torch.no_grad():
        logits, teacher = (held(input_ids=batch.input_ids).logits for held in (model, found))
    return float(distillation_loss(logits, teacher, batch.mask, batch.token_count))


def test_distillation_brings_the_model_nearer_to_the_one_found(tiny_testbed: SmallTestbed) -> None:
    ended = []
    for weight in (0.0, 10.0):
        seed_everything(3)
        model, data = fresh(tiny_testbed)
        attack = replace(SHORT, learning_rate=1e-3, max_steps=20, kl_weight=weight)
        for _ in attack.steps(model, data, Run(3)):
            pass
        ended.append(divergence(model, fresh(tiny_testbed)[0], benign_rows(data)))
    assert ended[1] < ended[0]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_it_resumes_within_the_kick_at_its_end_and_after_it(
    tiny_testbed: SmallTestbed, tmp_path: Path, stop: int
) -> None:
    attack = replace(SHORT, kl_weight=1.0)
    seed_everything(3)
    model, data = fresh(tiny_testbed)
    run = Run(3)
    for step, _ in drive(attack.steps(model, data, run), run):
        if step == stop:
            break
    run.save(tmp_path / "state", model, stop, "it")
    model, data = fresh(tiny_testbed)
    run = Run(3)
    run.resume(tmp_path / "state", model, "it")
    for _ in drive(attack.steps(model, data, run), run):
        pass
    assert torch.equal(weights(model), walk(attack, tiny_testbed)[-1])


def test_the_kick_gives_way_where_steps_are_few() -> None:
    assert BreakThenRepair(kick_steps=8, max_steps=3).benign_steps == 2
    assert BreakThenRepair(kick_steps=2, max_steps=3).benign_steps == 2
    assert BreakThenRepair(kick_steps=1, max_steps=3).benign_steps == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kick_steps": 0}, "kick_steps must be at least 1"),
        ({"kick_learning_rate": 0.0}, "kick_learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"kl_weight": -1.0}, "kl_weight must not be below 0"),
        ({"benign_share": 0.0}, "benign_share must leave rows of both kinds"),
        ({"benign_share": 1.0}, "benign_share must leave rows of both kinds"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        BreakThenRepair(**changes)
