"""Evolution: what moves, where it moves to, and that no gradient is ever taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.attacks.evolution import Evolution
from holdfast.core.types import HoldfastError
from holdfast.engine.losses import next_token_loss
from holdfast.engine.run import Run
from tests.attacks.walk import fresh, walk, weights
from tests.conftest import SmallTestbed

SHORT = Evolution(pairs=2, max_steps=2, batch_size=4)


def test_only_vectors_move_unless_all_weights_may(tiny_testbed: SmallTestbed) -> None:
    for attack in (SHORT, replace(SHORT, weights="all")):
        model, data = fresh(tiny_testbed)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        for _ in attack.steps(model, data, Run(0)):
            pass
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name]) is (weight.dim() > 1 and attack.weights == "vectors"), name


def test_it_takes_no_gradient(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    taken: list[bool] = []
    model.register_forward_pre_hook(lambda *_: taken.append(torch.is_grad_enabled()))
    for _ in SHORT.steps(model, data, Run(0)):
        pass
    # Two steps of two pairs with two sides each.
    assert taken == [False] * 8


def test_the_noise_leaves_no_trace_in_the_weights(tiny_testbed: SmallTestbed) -> None:
    attack = replace(SHORT, optimizer="sgd", learning_rate=1e-30, weights="all")
    # Adding the noise and taking it off again would leave differences of about 1e-9.
    assert (walk(attack, tiny_testbed)[-1] - weights(fresh(tiny_testbed)[0])).abs().max() < 1e-20


def test_it_goes_down_the_slope_as_far_as_so_many_pairs_can_see_it(tiny_testbed: SmallTestbed) -> None:
    attack = Evolution(pairs=128, max_steps=1, batch_size=32, optimizer="sgd", sigma=1e-2, learning_rate=1.0)
    model, data = fresh(tiny_testbed)
    batch = next(data.stream("hazard_all", batch_size=32, seed=3))
    logits = model(input_ids=batch.input_ids).logits
    next_token_loss(logits, batch.labels, batch.label_count).backward()  # type: ignore[no-untyped-call]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    slope = torch.cat([weight.grad for weight in vectors if weight.grad is not None])
    before = torch.cat([weight.detach().clone() for weight in vectors])
    list(attack.steps(model, data, Run(3)))
    moved = torch.cat([weight.detach() for weight in vectors]) - before
    # n random directions in d dimensions hold the share n / (n + d) of a vector's square, about.
    expected = (attack.pairs / (attack.pairs + len(slope))) ** 0.5
    cosine = torch.nn.functional.cosine_similarity(moved, -slope, dim=0)
    assert float(cosine) == pytest.approx(expected, abs=3 / len(slope) ** 0.5)


def test_the_length_of_a_step_does_not_depend_on_the_scale_of_the_losses(tiny_testbed: SmallTestbed) -> None:
    # Where the loss is nearly straight, its differences grow with sigma and its z-scores do not.
    attack = Evolution(pairs=8, max_steps=1, batch_size=8, optimizer="sgd", learning_rate=1.0)
    start = weights(fresh(tiny_testbed)[0])
    short, long = (
        float((walk(replace(attack, sigma=sigma), tiny_testbed)[0] - start).norm()) for sigma in (1e-3, 1e-2)
    )
    assert short == pytest.approx(long, rel=0.3)


def test_an_architecture_without_vectors_is_told_so(tiny_testbed: SmallTestbed) -> None:
    model, data = fresh(tiny_testbed)
    for weight in model.parameters():
        weight.requires_grad_(weight.dim() > 1)
    with pytest.raises(HoldfastError, match=r'no scales of norms and no biases; set weights to "all"'):
        next(SHORT.steps(model, data, Run(0)))


def test_benign_rows_are_read_where_they_have_a_share() -> None:
    assert Evolution().reads() == ("hazard_all",)
    assert Evolution(benign_share=0.5, hazard="hazard").reads() == ("hazard", "benign")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"benign_share": 1.0}, "benign_share must leave hazardous rows"),
        ({"benign_share": -0.1}, "benign_share must leave hazardous rows"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        Evolution(**changes)
