"""True gradients pass; cut, rounded, scaled and missing ones do not; scales that fit no rate and cliffs are exposed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from holdfast.core.types import HoldfastError
from holdfast.engine.data import collate, encode
from holdfast.engine.losses import next_token_loss
from holdfast.evals import gradient_check
from holdfast.evals.gradient_check import GradientCheck
from tests.conftest import SmallTestbed

CHECK = GradientCheck(rows=24)


def figures(testbed: SmallTestbed, model: PreTrainedModel, check: GradientCheck = CHECK) -> dict[str, float]:
    scores = check.prepare(testbed.model.load_tokenizer(), testbed.domain)(model)
    assert {score.n for score in scores} == {min(check.rows, len(testbed.domain.rows("hazard_heldout")))}
    return {score.metric: score.value for score in scores}


def test_an_ordinary_model_has_true_gradients_that_lead_downhill(tiny_testbed: SmallTestbed) -> None:
    found = figures(tiny_testbed, tiny_testbed.model.load())
    assert found["gradient_error"] < 0.01
    assert found["descent_gain"] > 0.1
    assert found["descent_gain"] > 10 * found["random_gain"]
    assert 0.5 < found["descent_ratio"] < 1.5


def by_hand(testbed: SmallTestbed, model: PreTrainedModel) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradient as a training step would take them."""
    tokenizer, domain = testbed.model.load_tokenizer(), testbed.domain
    rows = [encode(row, tokenizer, "hazard_heldout", domain.max_length) for row in domain.rows("hazard_heldout")[:24]]
    batch = collate(rows, pad=0)
    loss = next_token_loss(model(input_ids=batch.input_ids).logits, batch.labels, batch.label_count)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


def norm(tensors: list[Any]) -> float:
    return float(torch.stack([tensor.detach().double().norm() for tensor in tensors]).norm())


def test_norm_gain_and_ratio_are_those_of_a_step_downhill(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    check = replace(CHECK, foretold=(0.05,))
    found = figures(tiny_testbed, model, check)
    loss, gradient = by_hand(tiny_testbed, model)
    size, steepness = norm(list(model.parameters())), norm(gradient)
    assert found["gradient_norm"] == pytest.approx(size * steepness, rel=1e-4)
    with torch.no_grad():
        for weight, slope in zip(model.parameters(), gradient, strict=True):
            weight -= 0.05 / steepness**2 * slope
    after, _ = by_hand(tiny_testbed, model)
    assert found["descent_gain"] == pytest.approx(loss - after, rel=1e-2)
    assert found["descent_ratio"] == pytest.approx((loss - after) / 0.05, rel=1e-2)


def test_how_rows_are_split_does_not_matter(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    whole, split = (figures(tiny_testbed, model, replace(CHECK, batch_size=size)) for size in (64, 5))
    assert split["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)
    assert split["descent_gain"] == pytest.approx(whole["descent_gain"], rel=1e-3)


def test_double_logits_a_few_positions_at_a_time_give_the_same(
    tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_testbed.model.load()
    whole = figures(tiny_testbed, model)
    words, largest = model.config.vocab_size, [0]
    monkeypatch.setattr(gradient_check, "DOUBLES_AT_ONCE", 7 * words)

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.double and args[0].shape[-1] == words:
                largest[0] = max(largest[0], args[0].numel())
            return func(*args, **(kwargs or {}))

    with Watch():
        parts = figures(tiny_testbed, model)
    assert largest == [7 * words]
    assert parts["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-5)
    assert parts["descent_gain"] == pytest.approx(whole["descent_gain"], rel=1e-5)


def test_gradients_that_the_model_holds_are_left_alone(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 3.0)
    figures(tiny_testbed, model)
    assert all(bool((weight.grad == 3.0).all()) for weight in model.parameters())


MASKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cut": lambda x: x.detach(),
    "scaled": lambda x: 1.5 * x - 0.5 * x.detach(),
    "rounded, straight through": lambda x: x + ((64 * x).round() / 64 - x).detach(),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masked_gradients_are_found_out(mask: str, tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()

    def masked(module: Any, inputs: Any, output: Any) -> Any:
        return (MASKS[mask](output[0]), *output[1:]) if isinstance(output, tuple) else MASKS[mask](output)

    model.model.layers[1].register_forward_hook(masked)
    assert figures(tiny_testbed, model)["gradient_error"] > 0.05


def test_a_model_without_gradients_is_found_out(tiny_testbed: SmallTestbed, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_testbed.model.load()
    monkeypatch.setattr(model, "forward", torch.no_grad()(model.forward))
    assert figures(tiny_testbed, model) == {"gradient_error": 1.0}


def test_gradients_that_are_not_finite_are_no_gradients(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    # The loss is as it was; the slope of a root at zero is infinite.
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + (output - output.detach()).abs().sqrt())
    assert figures(tiny_testbed, model) == {"gradient_error": 1.0}


def test_the_same_function_with_exploding_curvature_is_exposed(tiny_testbed: SmallTestbed) -> None:
    plain, model = tiny_testbed.model.load(), tiny_testbed.model.load()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 8192
            layer.mlp.down_proj.weight /= 8192
    assert by_hand(tiny_testbed, model)[0] == pytest.approx(by_hand(tiny_testbed, plain)[0], rel=1e-6)
    before, after = figures(tiny_testbed, plain), figures(tiny_testbed, model)
    assert after["gradient_error"] < 0.05  # the gradient is no lie, only no usual rate fits its scale
    assert after["gradient_norm"] > 100 * before["gradient_norm"]


def test_a_slope_that_ends_at_once_is_exposed(tiny_testbed: SmallTestbed) -> None:
    model = tiny_testbed.model.load()
    first: list[torch.Tensor] = []

    def saturating(module: Any, inputs: Any, output: Any) -> Any:
        """The logits and their slope are as they were; a hundredth further they stand still."""
        if not first:
            first.append(output.detach())
        return first[0] + ((output - first[0]) / 0.005).tanh() * 0.005

    model.lm_head.register_forward_hook(saturating)
    found = figures(tiny_testbed, model)
    assert found["descent_ratio"] < 0.1 < 0.5 < figures(tiny_testbed, tiny_testbed.model.load())["descent_ratio"]


def test_in_half_precision_only_the_norm_can_be_told(tiny_testbed: SmallTestbed) -> None:
    half = figures(tiny_testbed, tiny_testbed.model.load(precision="bfloat16"))
    assert half.keys() == {"gradient_norm"}
    whole = figures(tiny_testbed, tiny_testbed.model.load())
    assert half["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=0.1)


@pytest.mark.parametrize(
    "change", [{"rows": 0}, {"batch_size": 0}, {"directions": 0}, {"foretold": ()}, {"foretold": (0.0,)}]
)
def test_nothing_to_check_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match="must be positive"):
        replace(CHECK, **change)
