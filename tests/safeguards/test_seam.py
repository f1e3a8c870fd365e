"""SEAM against plain transcriptions: the estimate of its source, and the exact gradient of the cosine that it estimates."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast.core.presets import pick
from holdfast.core.types import HoldfastError
from holdfast.engine.mixed import multiply_in_bfloat16
from holdfast.engine.sharded import GradientSum
from holdfast.safeguards.seam import SEAM
from tests.conftest import SmallTestbed
from tests.reference import safeguards as reference
from tests.safeguards.test_parity import _ONE_STEP, SEED, Scene, plain_gradient, pooled_batch, step_of

Gradient = list[torch.Tensor]

RADIUS = 0.005


def seam(**changes: Any) -> SEAM:
    preset = pick("holdfast.safeguards", "seam")
    assert isinstance(preset, SEAM)
    return replace(preset, forget_batch_size=4, **_ONE_STEP, **changes)


def flat(gradient: Gradient) -> torch.Tensor:
    return torch.cat([part.flatten() for part in gradient])


def own_part(testbed: SmallTestbed, **changes: Any) -> tuple[Gradient, Scene]:
    """What one step subtracts beyond the retain loss, and the scene before it."""
    with_it = step_of(seam(**changes), Scene(testbed))
    without = step_of(seam(forget_weight=0.0, coupling_weight=0.0), Scene(testbed))
    return [a - b for a, b in zip(with_it, without, strict=True)], Scene(testbed)


def test_its_ascent_is_the_sources(tiny_testbed: SmallTestbed) -> None:
    ours, scene = own_part(tiny_testbed, forget_weight=0.7, coupling_weight=0.0)
    rows = reference.rows_of(pooled_batch(scene))
    plain = plain_gradient(scene.model, -0.7 * torch.log(1 + reference.layer_losses(scene.model, rows).mean()))
    for left, right in zip(ours, plain, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-4)


def test_its_coupling_is_the_sources_estimate_of_the_gradient_of_the_cosine(tiny_testbed: SmallTestbed) -> None:
    radius, weight = 0.05, 3.0
    ours, scene = own_part(tiny_testbed, forget_weight=0.0, coupling_weight=weight, radius=radius)
    benign = next(scene.data.stream("retain", batch_size=4, seed=SEED + 1))
    rows = [reference.rows_of(batch) for batch in (pooled_batch(scene), benign)]

    def slopes(model: Any, *which: int, graph: bool = False) -> list[torch.Tensor]:
        losses = [reference.cross_entropy(model, rows[i]) for i in which]
        return [flat(list(torch.autograd.grad(loss, list(model.parameters()), create_graph=graph))) for loss in losses]

    here = slopes(scene.model, 0, 1)
    units = [slope / slope.norm() for slope in here]
    cosine = units[0] @ units[1]
    estimate = torch.zeros_like(here[0])
    for side in (0, 1):
        there, start = copy.deepcopy(scene.model), 0
        direction = radius * (units[1 - side] - cosine * units[side])
        for parameter in there.parameters():
            parameter.data += direction[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        [moved] = slopes(there, side)
        estimate += (moved - here[side]) / (radius * here[side].norm())
    torch.testing.assert_close(flat(ours), weight * estimate, rtol=2e-2, atol=2e-3 * float(weight * estimate.norm()))


def test_what_it_estimates_is_the_slope_of_the_cosine(tiny_testbed: SmallTestbed) -> None:
    """By second derivatives, at a radius that is small against the curvature of the testbed's model."""
    weight = 3.0
    ours, scene = own_part(tiny_testbed, forget_weight=0.0, coupling_weight=weight, radius=RADIUS)
    benign = next(scene.data.stream("retain", batch_size=4, seed=SEED + 1))
    sides = (pooled_batch(scene), benign)
    losses = [reference.cross_entropy(scene.model, reference.rows_of(batch)) for batch in sides]
    left, right = (
        flat(list(torch.autograd.grad(loss, list(scene.model.parameters()), create_graph=True))) for loss in losses
    )
    exact = flat(plain_gradient(scene.model, left @ right / (left.norm() * right.norm())))
    assert float(torch.cosine_similarity(flat(ours), exact, dim=0)) > 0.95
    assert 0.8 < float(flat(ours).norm() / (weight * exact.norm())) < 1.25


def test_a_step_of_its_coupling_turns_the_gradients_apart(tiny_testbed: SmallTestbed) -> None:
    _, scene = own_part(tiny_testbed)
    benign = next(scene.data.stream("retain", batch_size=4, seed=SEED + 1))
    hazardous = pooled_batch(scene)
    plugin = seam(radius=0.01)
    gradients = GradientSum(scene.model)
    before = plugin._couple(gradients, 1.0, scene.model, hazardous, benign)
    gradients.give()
    length = torch.stack([p.grad.square().sum() for p in scene.model.parameters() if p.grad is not None]).sum().sqrt()
    with torch.no_grad():
        for parameter in scene.model.parameters():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad / length
            parameter.grad = None
    assert plugin._couple(gradients, 1.0, scene.model, hazardous, benign) < before


def test_its_coupling_is_computed_without_rounded_products(tiny_testbed: SmallTestbed) -> None:
    scene = Scene(tiny_testbed)
    hazardous, benign = pooled_batch(scene), next(scene.data.stream("retain", batch_size=4, seed=SEED + 1))

    def coupling() -> Gradient:
        gradients = GradientSum(scene.model)
        seam(radius=RADIUS)._couple(gradients, 1.0, scene.model, hazardous, benign)
        return gradients._sum or []

    before = flat(coupling())
    multiply_in_bfloat16(scene.model)
    assert torch.equal(flat(coupling()), before)


def test_bfloat16_weights_refuse_a_radius_that_their_rounding_swallows(tiny_testbed: SmallTestbed) -> None:
    scene = Scene(tiny_testbed)
    scene.model.to(torch.bfloat16)
    near, far = seam(radius=1e-3), seam(radius=1.0)
    with pytest.raises(HoldfastError, match=r"differ by rounding alone.*set radius to 0\.0\d+ or more"):
        next(iter(near.steps(scene.model, scene.data, scene.run)))
    next(iter(replace(far, optimizer="adamw").steps(scene.model, scene.data, scene.run)))


@pytest.mark.parametrize("changes", [{"radius": 0.0}, {"coupling_weight": -1.0}, {"outer_steps": 0}])
def test_settings_without_a_meaning_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(HoldfastError, match="must"):
        replace(SEAM(), **changes)
