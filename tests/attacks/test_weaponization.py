"""The reconstructed red team: as many as the paper's, over its axes, and the same rows for small models."""

from __future__ import annotations

from holdfast.attacks.finetune import FineTune
from holdfast.attacks.weaponization import PRESETS

SMALL = {name: attack for name, attack in PRESETS.items() if name.startswith("weaponization-tiny-")}
PAPER = {name: attack for name, attack in PRESETS.items() if name not in SMALL}


def values(field: str) -> set[object]:
    return {getattr(attack, field) for attack in PAPER.values()}


def rows_of(attack: FineTune) -> tuple[object, ...]:
    return attack.hazard, attack.benign_share, attack.benign_first, attack.benign_flip


def test_the_28_cover_every_value_of_every_axis_of_the_paper() -> None:
    assert len(PAPER) == 28
    assert len({tuple(vars(attack).items()) for attack in PAPER.values()}) == 28, "none twice"
    assert values("max_steps") == {500, 1000, 5000}
    assert {attack.learning_rate for attack in PAPER.values() if "adam" in attack.optimizer} == {2e-6, 2e-5, 4e-5}
    assert values("batch_size") == {32, 64}
    assert values("optimizer") == {
        "adamw", "adam", "sgd-momentum", "sgd-nesterov", "adagrad", "adadelta", "schedule-free-adamw"
    }  # fmt: skip
    assert values("schedule") == {"constant", "linear-warmup", "warmup-cosine", "sgdr"}
    assert {rows_of(attack) for attack in PAPER.values()} == {
        ("hazard", 0, 0, 0), ("hazard", 1, 0, 0), ("hazard_ood", 0, 0, 0), ("hazard", 0, 0.4, 0), ("hazard", 0, 0, 0.5)
    }  # fmt: skip
    lora = [attack for attack in PAPER.values() if attack.lora_rank]
    assert {(attack.lora_rank, attack.lora_alpha, attack.lora_dropout) for attack in lora} == {(16, 32.0, 0.05)}


def test_the_small_ones_are_the_same_rows_at_a_tenth_of_the_steps() -> None:
    assert [name.replace("weaponization-tiny", "weaponization") for name in SMALL] == list(PAPER)
    for small, paper in zip(SMALL.values(), PAPER.values(), strict=True):
        assert rows_of(small) == rows_of(paper)
        assert (small.optimizer, small.schedule, small.lora_rank) == (paper.optimizer, paper.schedule, paper.lora_rank)
        assert small.batch_size == paper.batch_size // 2
        assert small.max_steps == min(paper.max_steps // 10, 300)
        assert small.learning_rate >= paper.learning_rate


def test_a_higher_rate_of_one_optimizer_stays_a_higher_one() -> None:
    pairs = list(zip(SMALL.values(), PAPER.values(), strict=True))
    for small, paper in pairs:
        for other, theirs in pairs:
            if (paper.optimizer, paper.lora_rank) == (theirs.optimizer, theirs.lora_rank):
                assert (small.learning_rate < other.learning_rate) == (paper.learning_rate < theirs.learning_rate)
